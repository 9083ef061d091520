// All substrings of a growing text of tokens, and for each the place where it stood last.
//
// Source: Blumer et al., The smallest automaton recognizing the subwords of a text, Theoretical Computer Science 40,
// 1985: at most two states and three edges a token, built as the text grows. Edges of all states are in one table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ridgeline::speculate {

class SuffixAutomaton {
  public:
    SuffixAutomaton();

    // Tokens are not negative. A text may be several, one after another: `separate` ends one, and no match goes on
    // beyond its end.
    void append(int32_t token);
    void separate();
    int64_t num_tokens() const { return static_cast<int64_t>(text_.size()); }

  private:
    friend class Cursor;

    struct State {
        int32_t length;      // of its longest substring
        int32_t link;        // the state of the longest suffix that stands elsewhere too; -1 for the root
        int32_t end;         // index of the last token of a place where it stands, of the newest that is known
        int32_t first_edge;  // -1: none
    };
    struct Edge {
        int32_t from, token, target, next;  // next: of the same state
    };

    int32_t add_state(int32_t length, int32_t link, int32_t end);
    int32_t find_edge(int32_t state, int32_t token) const;  // index or -1
    void add_edge(int32_t state, int32_t token, int32_t target);
    int32_t clone(int32_t state, int32_t length);
    void note_ends();
    size_t bucket_of(int32_t state, int32_t token) const;
    void grow_table();

    std::vector<int32_t> text_;
    std::vector<State> states_;
    std::vector<Edge> edges_;
    std::vector<int32_t> table_;  // edges by (state, token), open addressing; -1: empty
    int32_t last_ = 0;
};

// Reads another text, or the automaton's own as it grows, and knows the longest suffix of it that stands in the
// automaton.
class Cursor {
  public:
    explicit Cursor(const SuffixAutomaton& automaton) : automaton_(&automaton) {}

    void advance(int32_t token);
    // Advances, and tells whether the match foretold this token: 1 or 0, or -1 where it foretold nothing.
    int follow(int32_t token);
    // Tokens of the match; 0 where not even the last token is known.
    int32_t match_tokens() const { return length_; }
    // At most `count` tokens that followed the newest place of the match.
    std::vector<int32_t> guesses(int64_t count) const;

  private:
    int32_t state() const;

    const SuffixAutomaton* automaton_;
    int32_t state_ = 0;
    int32_t length_ = 0;
};

}  // namespace ridgeline::speculate
