// Numbers that are known when the program runs (rows, formats) as constants of the compiler, which makes a loop for
// each. Internal to the kernels.
#pragma once

#include <type_traits>
#include <utility>

#include "matmul.h"

namespace ridgeline {

// Calls function(std::integral_constant<int, i>) for i = 0..count - 1.
template <int count, typename Function>
[[gnu::always_inline]] inline void unrolled(Function function) {
    [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
        (function(std::integral_constant<int, i>{}), ...);
    }(std::make_integer_sequence<int, count>{});
}

// Calls function(std::integral_constant<int, value>) for a value of 1..most.
template <int most, typename Function>
[[gnu::always_inline]] inline void with_constant(int value, Function function) {
    unrolled<most>([&](auto index) __attribute__((always_inline)) {
        if (value == index + 1) function(std::integral_constant<int, index + 1>{});
    });
}

// Calls function.template operator()<id>() with the format as a constant if it is a quantised one.
template <typename Function>
void with_quantised_format(FormatId format, Function function) {
    switch (format) {
        case FormatId::Q4_0:
            return function.template operator()<FormatId::Q4_0>();
        case FormatId::Q4_1:
            return function.template operator()<FormatId::Q4_1>();
        case FormatId::Q5_0:
            return function.template operator()<FormatId::Q5_0>();
        case FormatId::Q5_1:
            return function.template operator()<FormatId::Q5_1>();
        case FormatId::Q8_0:
            return function.template operator()<FormatId::Q8_0>();
        case FormatId::Q2_K:
            return function.template operator()<FormatId::Q2_K>();
        case FormatId::Q3_K:
            return function.template operator()<FormatId::Q3_K>();
        case FormatId::Q4_K:
            return function.template operator()<FormatId::Q4_K>();
        case FormatId::Q5_K:
            return function.template operator()<FormatId::Q5_K>();
        case FormatId::Q6_K:
            return function.template operator()<FormatId::Q6_K>();
        case FormatId::IQ4_NL:
            return function.template operator()<FormatId::IQ4_NL>();
        case FormatId::MXFP4:
            return function.template operator()<FormatId::MXFP4>();
        default:
            return;
    }
}

}  // namespace ridgeline
