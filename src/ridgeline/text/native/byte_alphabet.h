// The byte alphabet in which byte-level vocabularies are written: every byte has a printable character.
// Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), published vocabulary:
// bytes that print in Latin-1 stand for themselves, the other 68 become U+0100, U+0101, ... in order.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace ridgeline::text {

class ByteAlphabet {
  public:
    ByteAlphabet() {
        byte_of_.fill(-1);
        uint16_t next = 0x100;
        for (int byte = 0; byte < 256; ++byte) {
            bool prints = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
            uint16_t character = prints ? static_cast<uint16_t>(byte) : next++;
            character_of_[byte] = character;
            byte_of_[character] = static_cast<int16_t>(byte);
        }
    }

    void append_character(uint8_t byte, std::string& out) const {
        uint16_t character = character_of_[byte];
        if (character < 0x80) {
            out.push_back(static_cast<char>(character));
        } else {
            out.push_back(static_cast<char>(0xc0 | (character >> 6)));
            out.push_back(static_cast<char>(0x80 | (character & 0x3f)));
        }
    }

    // Appends the bytes that `text` stands for; false, with nothing appended, if a character is not of the alphabet.
    bool append_bytes(std::string_view text, std::string& out) const {
        size_t begin = out.size();
        for (size_t at = 0; at < text.size();) {
            unsigned char lead = static_cast<unsigned char>(text[at++]);
            unsigned character = lead;
            if (lead >= 0x80) {
                bool is_pair = lead >= 0xc0 && lead < 0xe0 && at < text.size();
                if (is_pair) character = ((lead & 0x1fu) << 6) | (static_cast<unsigned char>(text[at++]) & 0x3fu);
                if (!is_pair || character >= byte_of_.size()) character = 0;  // U+0000 is not of the alphabet
            }
            if (byte_of_[character] < 0) {
                out.resize(begin);
                return false;
            }
            out.push_back(static_cast<char>(byte_of_[character]));
        }
        return true;
    }

  private:
    std::array<uint16_t, 256> character_of_{};
    std::array<int16_t, 0x100 + 68> byte_of_{};
};

inline const ByteAlphabet kByteAlphabet;

}  // namespace ridgeline::text
