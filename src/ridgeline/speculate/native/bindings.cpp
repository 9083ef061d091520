// The Python face of the suffix automaton. Here, and only here, tokens that came from outside are checked.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "suffix_automaton.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace ridgeline::speculate;

namespace {

using Tokens = std::vector<int32_t>;

void check(const Tokens& tokens) {
    for (int32_t token : tokens) {
        if (token < 0) throw nb::value_error("a token id is negative");
    }
}

}  // namespace

NB_MODULE(_native, m) {
    nb::class_<SuffixAutomaton>(m, "SuffixAutomaton")
        .def(nb::init<>())
        .def_prop_ro("num_tokens", &SuffixAutomaton::num_tokens)
        .def(
            "append",
            [](SuffixAutomaton& self, const Tokens& tokens) {
                check(tokens);
                for (int32_t token : tokens) self.append(token);
            },
            "tokens"_a)
        .def("separate", &SuffixAutomaton::separate);
    nb::class_<Cursor>(m, "Cursor")
        .def(nb::init<const SuffixAutomaton&>(), "automaton"_a, nb::keep_alive<1, 2>())
        .def_prop_ro("match_tokens", &Cursor::match_tokens)
        .def(
            "advance",
            [](Cursor& self, const Tokens& tokens) {
                check(tokens);
                for (int32_t token : tokens) self.advance(token);
            },
            "tokens"_a)
        .def(
            "follow",
            [](Cursor& self, int32_t token, SuffixAutomaton* own) {
                check({token});
                const int foreseen = self.follow(token);
                if (own != nullptr) own->append(token);
                return foreseen;
            },
            "token"_a, "own"_a.none())
        .def("guesses", &Cursor::guesses, "count"_a);
    m.def(
        "advance_and_append",
        [](Cursor& cursor, SuffixAutomaton& automaton, const Tokens& tokens) {
            check(tokens);
            for (int32_t token : tokens) {
                cursor.advance(token);
                automaton.append(token);
            }
        },
        "cursor"_a, "automaton"_a, "tokens"_a);
}
