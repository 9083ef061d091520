// The Python face of the tokenizer's core. Here, and only here, sizes and ids that came from outside are checked.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "bpe.h"
#include "byte_alphabet.h"
#include "unigram.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace ridgeline::text;

namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename T>
std::span<const T> span_of(const Array<T>& array) {
    return {array.data(), array.size()};
}

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

TokenTexts texts_of(const Array<uint8_t>& blob, const Array<uint32_t>& offsets) {
    TokenTexts texts{{reinterpret_cast<const char*>(blob.data()), blob.size()}, span_of(offsets)};
    if (!texts.is_sound()) refuse("token offsets do not fit the token texts");
    return texts;
}

void check_ids(std::span<const uint32_t> ids, size_t num_tokens, const char* what) {
    for (uint32_t id : ids) {
        if (id != kNoToken && id >= num_tokens) refuse(std::string(what) + " holds an id beyond the vocabulary");
    }
}

void check_size(size_t given, size_t needed, const char* what) {
    if (given != needed) refuse(std::string(what) + " has the wrong length");
}

// Look-ups end at an empty slot, so there must be one.
void check_slots(std::span<const uint32_t> slots, size_t num_tokens) {
    bool is_power_of_two = !slots.empty() && (slots.size() & (slots.size() - 1)) == 0;
    bool has_empty = false;
    for (uint32_t id : slots) has_empty |= id == kNoToken;
    if (!is_power_of_two || !has_empty) refuse("the token table has no empty slot or a wrong size");
    check_ids(slots, num_tokens, "the token table");
}

std::span<const MergeSlot> merges_of(const Array<uint32_t>& words, size_t num_tokens) {
    std::span<const MergeSlot> slots{reinterpret_cast<const MergeSlot*>(words.data()), words.size() / 4};
    bool is_power_of_two = !slots.empty() && (slots.size() & (slots.size() - 1)) == 0;
    bool has_empty = false;
    for (const MergeSlot& slot : slots) {
        has_empty |= slot.left == kNoToken;
        bool is_sound =
            slot.left == kNoToken || (slot.left < num_tokens && slot.right < num_tokens && slot.merged < num_tokens);
        if (!is_sound) refuse("the merge table holds an id beyond the vocabulary");
    }
    if (!is_power_of_two || !has_empty || words.size() % 4 != 0) refuse("the merge table has a wrong size");
    return slots;
}

std::string_view utf8_of(nb::handle text) {
    Py_ssize_t num_bytes = 0;
    const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &num_bytes);
    if (bytes == nullptr) throw nb::python_error();
    return {bytes, static_cast<size_t>(num_bytes)};
}

std::string_view bytes_or_utf8_of(nb::handle piece) {
    std::string_view text;
    if (PyBytes_Check(piece.ptr())) {
        char* bytes = nullptr;
        Py_ssize_t num_bytes = 0;
        if (PyBytes_AsStringAndSize(piece.ptr(), &bytes, &num_bytes) != 0) throw nb::python_error();
        text = {bytes, static_cast<size_t>(num_bytes)};
    } else {
        text = utf8_of(piece);
    }
    if (text.size() > INT32_MAX) refuse("a piece of text is longer than 2 GiB");
    return text;
}

std::vector<std::string_view> texts_of_pieces(const nb::list& pieces) {
    std::vector<std::string_view> texts;
    texts.reserve(pieces.size());
    for (nb::handle piece : pieces) texts.push_back(bytes_or_utf8_of(piece));
    return texts;
}

template <typename T>
nb::object array_of(std::vector<T>&& values) {
    auto* owned = new std::vector<T>(std::move(values));
    nb::capsule owner(owned, [](void* memory) noexcept { delete static_cast<std::vector<T>*>(memory); });
    return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner));
}

nb::object words_of(const std::vector<MergeSlot>& slots) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(slots.data());
    return array_of(std::vector<uint32_t>(words, words + 4 * slots.size()));
}

nb::list list_of(const std::vector<uint32_t>& ids) {
    nb::list list;
    for (uint32_t id : ids) list.append(id);
    return list;
}

// A vocabulary of merges, over memory that the arrays keep alive.
class BpeVocabulary {
  public:
    BpeVocabulary(Array<uint8_t> blob, Array<uint32_t> offsets, Array<uint32_t> token_slots,
                  Array<uint32_t> merge_slots, Array<uint8_t> may_merge, Array<uint32_t> byte_ids, int64_t unknown_id,
                  bool is_byte_level, bool has_byte_fallback, bool fuses_unknown, bool ignores_merges)
        : held_{blob, may_merge}, held_words_{offsets, token_slots, merge_slots, byte_ids} {
        model_.table = {texts_of(blob, offsets), span_of(token_slots)};
        size_t num_tokens = model_.table.texts.size();
        check_slots(model_.table.slots, num_tokens);
        model_.merges.slots = merges_of(merge_slots, num_tokens);
        check_size(may_merge.size(), num_tokens, "may_merge");
        model_.may_merge = span_of(may_merge);
        check_size(byte_ids.size(), 256, "byte_ids");
        check_ids(span_of(byte_ids), num_tokens, "byte_ids");
        model_.byte_ids = span_of(byte_ids);
        if (unknown_id >= static_cast<int64_t>(num_tokens)) refuse("unknown_id is beyond the vocabulary");
        model_.unknown_id = unknown_id < 0 ? kNoToken : static_cast<uint32_t>(unknown_id);
        model_.is_byte_level = is_byte_level;
        model_.has_byte_fallback = has_byte_fallback;
        model_.fuses_unknown = fuses_unknown;
        model_.ignores_merges = ignores_merges;
    }

    nb::list encode(nb::list pieces) const {
        std::vector<std::string_view> texts = texts_of_pieces(pieces);
        std::vector<uint32_t> ids;
        {
            nb::gil_scoped_release others_may_run;  // the list, which the caller holds, keeps the texts alive
            BpeEncoder encoder;
            for (std::string_view text : texts) encoder.encode(model_, text, ids);
        }
        return list_of(ids);
    }

  private:
    Array<uint8_t> held_[2];
    Array<uint32_t> held_words_[4];
    BpeModel model_;
};

class StringSet {
  public:
    StringSet(Array<uint8_t> blob, Array<uint32_t> offsets, Array<uint32_t> ids)
        : held_{blob}, held_words_{offsets, ids} {
        TokenTexts texts = texts_of(blob, offsets);
        check_size(ids.size(), texts.size(), "ids");
        for (size_t i = 0; i < texts.size(); ++i) {
            if (texts[i].empty() || (i > 0 && !(texts[i - 1] < texts[i])))
                refuse("strings are not sorted and distinct");
        }
        set_ = PrefixSet(texts, span_of(ids));
    }

    const PrefixSet& set() const { return set_; }

    nb::list find_in(nb::str text) const {
        nb::list found;
        for (const Occurrence& each : occurrences(set_, utf8_of(text))) {
            found.append(nb::make_tuple(each.start, each.end, each.id));
        }
        return found;
    }

  private:
    Array<uint8_t> held_;
    Array<uint32_t> held_words_[2];
    PrefixSet set_;
};

// A vocabulary of log-probabilities, over memory that the arrays keep alive.
class UnigramVocabulary {
  public:
    UnigramVocabulary(const StringSet& pieces, Array<double> scores, Array<uint32_t> byte_ids, int64_t unknown_id,
                      double unknown_score, bool has_byte_fallback)
        : pieces_(pieces), held_scores_(scores), held_byte_ids_(byte_ids) {
        model_.pieces = pieces_.set();
        model_.scores = span_of(scores);
        check_ids(pieces_.set().ids(), scores.size(), "pieces");
        check_size(byte_ids.size(), 256, "byte_ids");
        check_ids(span_of(byte_ids), scores.size(), "byte_ids");
        model_.byte_ids = span_of(byte_ids);
        if (unknown_id >= static_cast<int64_t>(scores.size())) refuse("unknown_id is beyond the vocabulary");
        model_.unknown_id = unknown_id < 0 ? kNoToken : static_cast<uint32_t>(unknown_id);
        model_.unknown_score = unknown_score;
        model_.has_byte_fallback = has_byte_fallback;
    }

    nb::list encode(nb::list pieces) const {
        std::vector<std::string_view> texts = texts_of_pieces(pieces);
        std::vector<uint32_t> ids;
        {
            nb::gil_scoped_release others_may_run;
            for (std::string_view text : texts) encode_unigram(model_, text, ids);
        }
        return list_of(ids);
    }

  private:
    StringSet pieces_;
    Array<double> held_scores_;
    Array<uint32_t> held_byte_ids_;
    UnigramModel model_;
};

class TokenLookup {
  public:
    TokenLookup(Array<uint8_t> blob, Array<uint32_t> offsets, Array<uint32_t> slots)
        : held_{blob}, held_words_{offsets, slots}, table_{texts_of(blob, offsets), span_of(slots)} {
        check_slots(table_.slots, table_.texts.size());
    }

    int64_t find(nb::str text) const {
        uint32_t id = table_.find(utf8_of(text));
        return id == kNoToken ? -1 : static_cast<int64_t>(id);
    }

  private:
    Array<uint8_t> held_;
    Array<uint32_t> held_words_[2];
    TokenTable table_;
};

nb::object token_slots(Array<uint8_t> blob, Array<uint32_t> offsets, Array<uint8_t> is_present) {
    TokenTexts texts = texts_of(blob, offsets);
    check_size(is_present.size(), texts.size(), "is_present");
    try {
        return array_of(build_token_slots(texts, span_of(is_present)));
    } catch (const DuplicateToken& same) {
        refuse("tokens " + std::to_string(same.first) + " and " + std::to_string(same.second) + " are the same");
    }
}

uint32_t token_of_merge(const TokenTable& table, std::string_view text, size_t index) {
    uint32_t id = table.find(text);
    if (id == kNoToken) refuse("merge " + std::to_string(index) + " names no token of the vocabulary");
    return id;
}

nb::object merge_slots(Array<uint8_t> blob, Array<uint32_t> offsets, Array<uint32_t> slots, Array<uint8_t> may_merge,
                       nb::list merges) {
    TokenTable table{texts_of(blob, offsets), span_of(slots)};
    check_slots(table.slots, table.texts.size());
    check_size(may_merge.size(), table.texts.size(), "may_merge");
    std::vector<MergeSlot> entries;
    entries.reserve(merges.size());
    std::string joined;
    uint32_t index = 0;
    for (nb::handle merge : merges) {
        std::string_view left;
        std::string_view right;
        if (PyUnicode_Check(merge.ptr())) {
            std::string_view text = utf8_of(merge);
            size_t space = text.find(' ', 1);  // a token may begin with a space, none contains one further on
            if (space == std::string_view::npos) {
                refuse("merge " + std::to_string(index) + " is not two tokens with a space between");
            }
            left = text.substr(0, space);
            right = text.substr(space + 1);
        } else {
            nb::tuple pair = nb::cast<nb::tuple>(merge);
            if (pair.size() != 2) refuse("merge " + std::to_string(index) + " is not a pair of tokens");
            left = utf8_of(pair[0]);
            right = utf8_of(pair[1]);
        }
        joined.assign(left).append(right);
        MergeSlot entry{token_of_merge(table, left, index), token_of_merge(table, right, index), index,
                        token_of_merge(table, joined, index)};
        ++index;
        if (may_merge.data()[entry.merged]) entries.push_back(entry);
    }
    return words_of(build_merge_slots(entries));
}

nb::object score_merge_slots(Array<uint8_t> blob, Array<uint32_t> offsets, Array<uint32_t> slots,
                             Array<uint8_t> may_merge, Array<double> scores) {
    TokenTable table{texts_of(blob, offsets), span_of(slots)};
    check_slots(table.slots, table.texts.size());
    check_size(may_merge.size(), table.texts.size(), "may_merge");
    check_size(scores.size(), table.texts.size(), "scores");
    return words_of(build_merge_slots(merges_of_scores(table, span_of(scores), span_of(may_merge))));
}

// Bytes of each token of a byte-level vocabulary; those that are literal, or not of the alphabet, stay as they are.
nb::tuple bytes_of_alphabet(Array<uint8_t> blob, Array<uint32_t> offsets, Array<uint8_t> is_literal) {
    TokenTexts texts = texts_of(blob, offsets);
    check_size(is_literal.size(), texts.size(), "is_literal");
    std::string bytes;
    std::vector<int32_t> ends(1, 0);
    for (size_t id = 0; id < texts.size(); ++id) {
        if (is_literal.data()[id] || !kByteAlphabet.append_bytes(texts[id], bytes)) bytes.append(texts[id]);
        ends.push_back(static_cast<int32_t>(bytes.size()));
    }
    return nb::make_tuple(nb::bytes(bytes.data(), bytes.size()), array_of(std::move(ends)));
}

}  // namespace

NB_MODULE(_native, module) {
    nb::class_<BpeVocabulary>(module, "BpeVocabulary")
        .def(nb::init<Array<uint8_t>, Array<uint32_t>, Array<uint32_t>, Array<uint32_t>, Array<uint8_t>,
                      Array<uint32_t>, int64_t, bool, bool, bool, bool>(),
             nb::kw_only(), "blob"_a, "offsets"_a, "token_slots"_a, "merge_slots"_a, "may_merge"_a, "byte_ids"_a,
             "unknown_id"_a, "is_byte_level"_a, "has_byte_fallback"_a, "fuses_unknown"_a, "ignores_merges"_a)
        .def("encode", &BpeVocabulary::encode, "pieces"_a);
    nb::class_<StringSet>(module, "StringSet")
        .def(nb::init<Array<uint8_t>, Array<uint32_t>, Array<uint32_t>>(), "blob"_a, "offsets"_a, "ids"_a)
        .def("find_in", &StringSet::find_in, "text"_a);
    nb::class_<UnigramVocabulary>(module, "UnigramVocabulary")
        .def(nb::init<const StringSet&, Array<double>, Array<uint32_t>, int64_t, double, bool>(), nb::kw_only(),
             "pieces"_a, "scores"_a, "byte_ids"_a, "unknown_id"_a, "unknown_score"_a, "has_byte_fallback"_a)
        .def("encode", &UnigramVocabulary::encode, "pieces"_a);
    nb::class_<TokenLookup>(module, "TokenLookup")
        .def(nb::init<Array<uint8_t>, Array<uint32_t>, Array<uint32_t>>(), "blob"_a, "offsets"_a, "slots"_a)
        .def("find", &TokenLookup::find, "text"_a);
    module.def("checksum", [](const Array<uint8_t>& data) { return checksum(data.data(), data.size()); }, "data"_a);
    module.def("token_slots", &token_slots, "blob"_a, "offsets"_a, "is_present"_a);
    module.def("merge_slots", &merge_slots, "blob"_a, "offsets"_a, "slots"_a, "may_merge"_a, "merges"_a);
    module.def("score_merge_slots", &score_merge_slots, "blob"_a, "offsets"_a, "slots"_a, "may_merge"_a, "scores"_a);
    module.def("bytes_of_alphabet", &bytes_of_alphabet, "blob"_a, "offsets"_a, "is_literal"_a);
}
