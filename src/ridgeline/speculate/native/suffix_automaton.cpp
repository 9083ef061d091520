#include "suffix_automaton.h"

#include <algorithm>

namespace ridgeline::speculate {

namespace {
constexpr int32_t SEPARATOR = -1;
// How many of the suffixes that end at a token, longest first, are told that this is now their newest place. There may
// be as many as there are tokens, in a text of one token over and over; the others keep an older place.
constexpr int MAX_NOTED_ENDS = 32;
constexpr size_t FIRST_TABLE_SIZE = 64;
}  // namespace

SuffixAutomaton::SuffixAutomaton() : table_(FIRST_TABLE_SIZE, -1) { add_state(0, -1, -1); }

int32_t SuffixAutomaton::add_state(int32_t length, int32_t link, int32_t end) {
    states_.push_back({length, link, end, -1});
    return static_cast<int32_t>(states_.size()) - 1;
}

size_t SuffixAutomaton::bucket_of(int32_t state, int32_t token) const {
    uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(state)) << 32 | static_cast<uint32_t>(token);
    key *= 0x9E3779B97F4A7C15u;
    return (key >> 32) & (table_.size() - 1);
}

int32_t SuffixAutomaton::find_edge(int32_t state, int32_t token) const {
    for (size_t bucket = bucket_of(state, token);; bucket = (bucket + 1) & (table_.size() - 1)) {
        const int32_t edge = table_[bucket];
        if (edge < 0 || (edges_[edge].from == state && edges_[edge].token == token)) return edge;
    }
}

void SuffixAutomaton::grow_table() {
    table_.assign(table_.size() * 2, -1);
    for (size_t edge = 0; edge < edges_.size(); ++edge) {
        size_t bucket = bucket_of(edges_[edge].from, edges_[edge].token);
        while (table_[bucket] >= 0) bucket = (bucket + 1) & (table_.size() - 1);
        table_[bucket] = static_cast<int32_t>(edge);
    }
}

void SuffixAutomaton::add_edge(int32_t state, int32_t token, int32_t target) {
    if ((edges_.size() + 1) * 3 > table_.size() * 2) grow_table();
    size_t bucket = bucket_of(state, token);
    while (table_[bucket] >= 0) bucket = (bucket + 1) & (table_.size() - 1);
    table_[bucket] = static_cast<int32_t>(edges_.size());
    edges_.push_back({state, token, target, states_[state].first_edge});
    states_[state].first_edge = table_[bucket];
}

int32_t SuffixAutomaton::clone(int32_t state, int32_t length) {
    const int32_t copy = add_state(length, states_[state].link, states_[state].end);
    for (int32_t edge = states_[state].first_edge; edge >= 0; edge = edges_[edge].next)
        add_edge(copy, edges_[edge].token, edges_[edge].target);
    return copy;
}

// What follows the last token is known from now on: its suffixes stand there, newer than anywhere.
void SuffixAutomaton::note_ends() {
    const int32_t end = static_cast<int32_t>(text_.size()) - 1;
    int32_t state = last_;
    for (int number = 0; number < MAX_NOTED_ENDS && state > 0; ++number, state = states_[state].link)
        states_[state].end = end;
}

void SuffixAutomaton::append(int32_t token) {
    note_ends();
    text_.push_back(token);
    const int32_t end = static_cast<int32_t>(text_.size()) - 1;
    int32_t before = last_;
    const int32_t known = find_edge(last_, token);
    if (known >= 0) {
        // Only after a separator: the text begins again with what another began with.
        const int32_t target = edges_[known].target;
        if (states_[target].length == states_[last_].length + 1) {
            last_ = target;
            return;
        }
        const int32_t copy = clone(target, states_[last_].length + 1);
        states_[target].link = copy;
        for (int32_t edge = known; edge >= 0 && edges_[edge].target == target;) {
            edges_[edge].target = copy;
            before = states_[before].link;
            edge = before < 0 ? -1 : find_edge(before, token);
        }
        last_ = copy;
        return;
    }
    const int32_t added = add_state(states_[last_].length + 1, 0, end);
    int32_t edge = -1;
    while (before >= 0 && (edge = find_edge(before, token)) < 0) {
        add_edge(before, token, added);
        before = states_[before].link;
    }
    if (before >= 0) {
        const int32_t target = edges_[edge].target;
        if (states_[target].length == states_[before].length + 1) {
            states_[added].link = target;
        } else {
            const int32_t copy = clone(target, states_[before].length + 1);
            states_[target].link = copy;
            states_[added].link = copy;
            while (edge >= 0 && edges_[edge].target == target) {
                edges_[edge].target = copy;
                before = states_[before].link;
                edge = before < 0 ? -1 : find_edge(before, token);
            }
        }
    }
    last_ = added;
}

void SuffixAutomaton::separate() {
    if (text_.empty() || text_.back() == SEPARATOR) return;
    text_.push_back(SEPARATOR);
    last_ = 0;
}

// The state that holds the match now: states are split as the text grows, and the shorter substrings move up.
int32_t Cursor::state() const {
    int32_t state = state_;
    while (state > 0 && automaton_->states_[automaton_->states_[state].link].length >= length_)
        state = automaton_->states_[state].link;
    return state;
}

void Cursor::advance(int32_t token) {
    const auto& states = automaton_->states_;
    state_ = state();
    while (true) {
        const int32_t edge = automaton_->find_edge(state_, token);
        if (edge >= 0) {
            state_ = automaton_->edges_[edge].target;
            ++length_;
            return;
        }
        state_ = states[state_].link;
        if (state_ < 0) {
            state_ = length_ = 0;
            return;
        }
        length_ = states[state_].length;
    }
}

int Cursor::follow(int32_t token) {
    const int32_t at = state();
    int foreseen = -1;
    if (at > 0) {
        const auto& text = automaton_->text_;
        const size_t next = static_cast<size_t>(automaton_->states_[at].end) + 1;
        if (next < text.size() && text[next] != SEPARATOR) foreseen = text[next] == token;
    }
    advance(token);
    return foreseen;
}

std::vector<int32_t> Cursor::guesses(int64_t count) const {
    std::vector<int32_t> found;
    const int32_t at = state();
    if (at == 0) return found;
    const auto& text = automaton_->text_;
    const int64_t begin = automaton_->states_[at].end + 1;
    const int64_t end = std::min(begin + count, static_cast<int64_t>(text.size()));
    for (int64_t index = begin; index < end && text[index] != SEPARATOR; ++index) found.push_back(text[index]);
    return found;
}

}  // namespace ridgeline::speculate
