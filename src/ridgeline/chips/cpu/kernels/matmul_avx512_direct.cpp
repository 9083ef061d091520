// Inner loops of the int8 products for few rows: codes are taken from the packed tiles and go from memory through a
// register into the product. Needs AVX512_VNNI.
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include "matmul_avx512_assembly.h"

namespace ridgeline::avx512 {

namespace {

// Masks and code book of a format. Its code lines are made in zmm24 (tile 0) and zmm25 (tile 1).
struct Constants {
    uint32_t low;      // zmm8: the bits that come from the first plane
    uint32_t all;      // zmm9: all bits of a code
    uint8_t book[16];  // zmm20
};

constexpr uint32_t in_every_byte(uint32_t value) { return value * 0x01010101u; }

constexpr Constants make_constants(uint32_t low, uint32_t all) { return {in_every_byte(low), in_every_byte(all), {}}; }

constexpr Constants make_book(const uint8_t (&codes)[16], int shift) {
    Constants constants{in_every_byte(15), 0, {}};
    for (int i = 0; i < 16; ++i) constants.book[i] = static_cast<uint8_t>(codes[i] << shift);
    return constants;
}

// clang-format off

#define SHIFTED(OPERATION, BITS, OFFSET) \
    OPERATION " $" BITS ", 2*" OFFSET "(%[a]), %%zmm24\n\t" \
    OPERATION " $" BITS ", 2*" OFFSET "+64(%[a]), %%zmm25\n\t"
#define MASKED(MASK) \
    "vpandd " MASK ", %%zmm24, %%zmm24\n\t" \
    "vpandd " MASK ", %%zmm25, %%zmm25\n\t"
#define LOADED_MASKED(OFFSET) \
    "vpandd 2*" OFFSET "(%[a]), %%zmm8, %%zmm24\n\t" \
    "vpandd 2*" OFFSET "+64(%[a]), %%zmm8, %%zmm25\n\t"
// Bits of zmm8 stay, the others come from the second plane (moved up), then the mask of all bits. 0xe2 is
// "first where the mask is set, else third".
#define JOINED(BITS, OFFSET) \
    "vpsllw $" BITS ", 2*" OFFSET "(%[a]), %%zmm10\n\t" \
    "vpsllw $" BITS ", 2*" OFFSET "+64(%[a]), %%zmm11\n\t" \
    "vpternlogd $0xe2, %%zmm10, %%zmm8, %%zmm24\n\t" \
    "vpternlogd $0xe2, %%zmm11, %%zmm8, %%zmm25\n\t" \
    MASKED("%%zmm9")

// Code line V of a format: codes fill the byte from above.
#define NIBBLE_EVEN(OFFSET) SHIFTED("vpsllw", "4", OFFSET) MASKED("%%zmm8")
#define NIBBLE_0 NIBBLE_EVEN("0")
#define NIBBLE_1 LOADED_MASKED("0")
#define NIBBLE_2 NIBBLE_EVEN("64")
#define NIBBLE_3 LOADED_MASKED("64")
#define NIBBLE_4 NIBBLE_EVEN("128")
#define NIBBLE_5 LOADED_MASKED("128")
#define NIBBLE_6 NIBBLE_EVEN("192")
#define NIBBLE_7 LOADED_MASKED("192")

#define BOOKED \
    "vpshufb %%zmm24, %%zmm20, %%zmm24\n\t" \
    "vpshufb %%zmm25, %%zmm20, %%zmm25\n\t"
#define BOOK_ODD(OFFSET) SHIFTED("vpsrlw", "4", OFFSET) MASKED("%%zmm8") BOOKED
#define BOOK_0 LOADED_MASKED("0") BOOKED
#define BOOK_1 BOOK_ODD("0")
#define BOOK_2 LOADED_MASKED("64") BOOKED
#define BOOK_3 BOOK_ODD("64")
#define BOOK_4 LOADED_MASKED("128") BOOKED
#define BOOK_5 BOOK_ODD("128")
#define BOOK_6 LOADED_MASKED("192") BOOKED
#define BOOK_7 BOOK_ODD("192")

#define FIVE_0 SHIFTED("vpsllw", "3", "64") JOINED("7", "0")
#define FIVE_1 SHIFTED("vpsrlw", "1", "64") JOINED("6", "0")
#define FIVE_2 SHIFTED("vpsllw", "3", "128") JOINED("5", "0")
#define FIVE_3 SHIFTED("vpsrlw", "1", "128") JOINED("4", "0")
#define FIVE_4 SHIFTED("vpsllw", "3", "192") JOINED("3", "0")
#define FIVE_5 SHIFTED("vpsrlw", "1", "192") JOINED("2", "0")
#define FIVE_6 SHIFTED("vpsllw", "3", "256") JOINED("1", "0")
#define FIVE_7 SHIFTED("vpsrlw", "1", "256") JOINED("0", "0")

#define SIX_0 SHIFTED("vpsllw", "2", "128") JOINED("6", "0")
#define SIX_1 SHIFTED("vpsrlw", "2", "128") JOINED("4", "0")
#define SIX_2 SHIFTED("vpsllw", "2", "192") JOINED("2", "0")
#define SIX_3 SHIFTED("vpsrlw", "2", "192") JOINED("0", "0")
#define SIX_4 SHIFTED("vpsllw", "2", "256") JOINED("6", "64")
#define SIX_5 SHIFTED("vpsrlw", "2", "256") JOINED("4", "64")
#define SIX_6 SHIFTED("vpsllw", "2", "320") JOINED("2", "64")
#define SIX_7 SHIFTED("vpsrlw", "2", "320") JOINED("0", "64")

#define THREE_0 SHIFTED("vpsllw", "5", "64") JOINED("7", "0")
#define THREE_1 SHIFTED("vpsllw", "3", "64") JOINED("6", "0")
#define THREE_2 SHIFTED("vpsllw", "1", "64") JOINED("5", "0")
#define THREE_3 SHIFTED("vpsrlw", "1", "64") JOINED("4", "0")
#define THREE_4 SHIFTED("vpsllw", "5", "128") JOINED("3", "0")
#define THREE_5 SHIFTED("vpsllw", "3", "128") JOINED("2", "0")
#define THREE_6 SHIFTED("vpsllw", "1", "128") JOINED("1", "0")
#define THREE_7 SHIFTED("vpsrlw", "1", "128") JOINED("0", "0")

#define TWO_0 SHIFTED("vpsllw", "6", "0") MASKED("%%zmm8")
#define TWO_1 SHIFTED("vpsllw", "4", "0") MASKED("%%zmm8")
#define TWO_2 SHIFTED("vpsllw", "2", "0") MASKED("%%zmm8")
#define TWO_3 LOADED_MASKED("0")
#define TWO_4 SHIFTED("vpsllw", "6", "64") MASKED("%%zmm8")
#define TWO_5 SHIFTED("vpsllw", "4", "64") MASKED("%%zmm8")
#define TWO_6 SHIFTED("vpsllw", "2", "64") MASKED("%%zmm8")
#define TWO_7 LOADED_MASKED("64")

#define LOADED(OFFSET) \
    "vmovdqa64 2*" OFFSET "(%[a]), %%zmm24\n\t" \
    "vmovdqa64 2*" OFFSET "+64(%[a]), %%zmm25\n\t"
#define BYTE_0 LOADED("0")
#define BYTE_1 LOADED("64")
#define BYTE_2 LOADED("128")
#define BYTE_3 LOADED("192")
#define BYTE_4 LOADED("256")
#define BYTE_5 LOADED("320")
#define BYTE_6 LOADED("384")
#define BYTE_7 LOADED("448")

// Extended lines are taken from the record once all lines of a row's products are in it.
#define KEEP_CODES(V) \
    "vmovdqa64 %%zmm24, 64*" #V "(%[w])\n\t" \
    "vmovdqa64 %%zmm25, 64*" #V "+%c[half](%[w])\n\t"
#define LINE(ROWS, CODES, ASKED, V) ASKED##_##V CODES##_##V KEEP_CODES(V) ROWS(DOT, V)
#define LINES_FIRST(ROWS, CODES, ASKED) \
    LINE(ROWS, CODES, ASKED, 0) LINE(ROWS, CODES, ASKED, 1) LINE(ROWS, CODES, ASKED, 2) LINE(ROWS, CODES, ASKED, 3)
#define LINES_SECOND(ROWS, CODES, ASKED) \
    LINE(ROWS, CODES, ASKED, 4) LINE(ROWS, CODES, ASKED, 5) LINE(ROWS, CODES, ASKED, 6) LINE(ROWS, CODES, ASKED, 7)

#define LOAD_SCALES(OFFSET) \
    "vmovaps " OFFSET "(%[w]), %%zmm28\n\t" \
    "vmovaps " OFFSET "+%c[half](%[w]), %%zmm29\n\t"
#define LOAD_MINIMUMS(OFFSET) \
    "vmovaps " OFFSET "(%[w]), %%zmm30\n\t" \
    "vmovaps " OFFSET "+%c[half](%[w]), %%zmm31\n\t"

#define START(R, _) BEGIN_ZERO(R, DOT0_##R, DOT1_##R)
#define ADD_EXTENDED(R, BEGIN, HIGH) \
    EXTENDED(R, BEGIN, HIGH, "%%zmm10", "%%zmm11", "%%zmm22", "%%zmm23") \
    "vpaddd %%zmm22, " DOT0_##R ", " DOT0_##R "\n\t" \
    "vpaddd %%zmm23, " DOT1_##R ", " DOT1_##R "\n\t"
#define EXTEND_32(R, _) ADD_EXTENDED(R, BEGIN_32, HIGH_32)
#define EXTEND_32_MINIMUM(R, _) ADD_EXTENDED(R, BEGIN_ZERO, HIGH_32)
#define EXTEND_16_FIRST(R, _) ADD_EXTENDED(R, BEGIN_16_FIRST, HIGH_16_FIRST)
#define EXTEND_16_SECOND(R, _) ADD_EXTENDED(R, BEGIN_16_SECOND, HIGH_16_SECOND)
#define EXTEND_16_MINIMUM_FIRST(R, _) ADD_EXTENDED(R, BEGIN_ZERO, HIGH_16_FIRST)
#define EXTEND_16_MINIMUM_SECOND(R, _) ADD_EXTENDED(R, BEGIN_ZERO, HIGH_16_SECOND)

#define GROUP_32(ROWS, CODES, ASKED) \
    ROWS(START, 0) LINES_FIRST(ROWS, CODES, ASKED) LINES_SECOND(ROWS, CODES, ASKED) ROWS(EXTEND_32, 0) \
    LOAD_SCALES("512") ROWS(ADD_SCALED, 0)
#define GROUP_32_MINIMUM(ROWS, CODES, ASKED) \
    ROWS(START, 0) LINES_FIRST(ROWS, CODES, ASKED) LINES_SECOND(ROWS, CODES, ASKED) ROWS(EXTEND_32_MINIMUM, 0) \
    LOAD_SCALES("512") LOAD_MINIMUMS("576") ROWS(ADD_SCALED, 0) ROWS(ADD_MINIMUM_32, 0)
// The first half of a group may meet lines of the second that are not yet in the record, and multiplies them with zero.
#define GROUP_16(ROWS, CODES, ASKED) \
    ROWS(START, 0) LINES_FIRST(ROWS, CODES, ASKED) ROWS(EXTEND_16_FIRST, 0) LOAD_SCALES("512") ROWS(ADD_SCALED, 0) \
    ROWS(START, 0) LINES_SECOND(ROWS, CODES, ASKED) ROWS(EXTEND_16_SECOND, 0) LOAD_SCALES("576") ROWS(ADD_SCALED, 0)
#define GROUP_16_MINIMUM(ROWS, CODES, ASKED) \
    ROWS(START, 0) LINES_FIRST(ROWS, CODES, ASKED) ROWS(EXTEND_16_MINIMUM_FIRST, 0) \
    LOAD_SCALES("512") LOAD_MINIMUMS("640") ROWS(ADD_SCALED, 0) ROWS(ADD_MINIMUM_16_FIRST, 0) \
    ROWS(START, 0) LINES_SECOND(ROWS, CODES, ASKED) ROWS(EXTEND_16_MINIMUM_SECOND, 0) \
    LOAD_SCALES("576") LOAD_MINIMUMS("704") ROWS(ADD_SCALED, 0) ROWS(ADD_MINIMUM_16_SECOND, 0)

// Memory is asked a few lines with every code line, since a burst of requests would make the loop wait.
#define ASK(OFFSET) "prefetcht0 " OFFSET "(%[next])\n\t"
#define ASK_6_0 ASK("0")
#define ASK_6_1 ASK("64")
#define ASK_6_2 ASK("128")
#define ASK_6_3
#define ASK_6_4 ASK("192")
#define ASK_6_5 ASK("256")
#define ASK_6_6 ASK("320")
#define ASK_6_7
#define ASK_8_0 ASK("0")
#define ASK_8_1 ASK("64")
#define ASK_8_2 ASK("128")
#define ASK_8_3 ASK("192")
#define ASK_8_4 ASK("256")
#define ASK_8_5 ASK("320")
#define ASK_8_6 ASK("384")
#define ASK_8_7 ASK("448")
#define ASK_10_0 ASK_8_0
#define ASK_10_1 ASK_8_1
#define ASK_10_2 ASK_8_2
#define ASK_10_3 ASK_8_3 ASK("512")
#define ASK_10_4 ASK_8_4
#define ASK_10_5 ASK_8_5
#define ASK_10_6 ASK_8_6
#define ASK_10_7 ASK_8_7 ASK("576")
#define ASK_12_0 ASK_10_0
#define ASK_12_1 ASK_10_1 ASK("640")
#define ASK_12_2 ASK_10_2
#define ASK_12_3 ASK_10_3
#define ASK_12_4 ASK_10_4
#define ASK_12_5 ASK_10_5 ASK("704")
#define ASK_12_6 ASK_10_6
#define ASK_12_7 ASK_10_7
#define ASK_14_0 ASK_12_0 ASK("768")
#define ASK_14_1 ASK_12_1
#define ASK_14_2 ASK_12_2
#define ASK_14_3 ASK_12_3
#define ASK_14_4 ASK_12_4 ASK("832")
#define ASK_14_5 ASK_12_5
#define ASK_14_6 ASK_12_6
#define ASK_14_7 ASK_12_7
#define ASK_17_0 ASK_14_0
#define ASK_17_1 ASK_14_1
#define ASK_17_2 ASK_14_2 ASK("896")
#define ASK_17_3 ASK_14_3
#define ASK_17_4 ASK_14_4
#define ASK_17_5 ASK_14_5
#define ASK_17_6 ASK_14_6 ASK("960")
#define ASK_17_7 ASK_14_7 ASK("1024")

// HALF_BYTES: those of a record.
#define DEFINE_LOOP(NAME, ROWS, GROUP, CODES, ASKED, GROUP_BYTES, HALF_BYTES) \
    void NAME(const Constants& constants, const uint8_t* a, uint8_t* w, int64_t count, const uint8_t* x0, \
              int64_t stride, float* sums, const Ahead& ahead) { \
        const uint8_t* x1 = x0 + 3 * stride; \
        const uint8_t* next = ahead.next; \
        int64_t line; \
        asm volatile( \
            "vpbroadcastd %[low], %%zmm8\n\t" \
            "vpbroadcastd %[all], %%zmm9\n\t" \
            "vbroadcasti32x4 %[book], %%zmm20\n\t" \
            ROWS(LOAD_SUMS, 0) \
            ".p2align 6\n\t" \
            "1:\n\t" \
            GROUP(ROWS, CODES, ASKED) \
            "add $64, %[x0]\n\t" \
            "add $64, %[x1]\n\t" \
            "add %[step], %[next]\n\t" \
            "add $2*%c[bytes], %[a]\n\t" \
            "add $2*%c[half], %[w]\n\t" \
            "dec %[count]\n\t" \
            "jnz 1b\n\t" \
            ROWS(STORE_SUMS, 0) \
            : [a] "+r"(a), [w] "+r"(w), [count] "+r"(count), [x0] "+r"(x0), [x1] "+r"(x1), [next] "+r"(next), \
              [line] "=&r"(line) \
            : [stride] "r"(stride), [sums] "r"(sums), [step] "r"(ahead.step_bytes), [half] "i"(HALF_BYTES), \
              [bytes] "i"(GROUP_BYTES), [low] "m"(constants.low), [all] "m"(constants.all), [book] "m"(constants.book) \
            : "memory", "cc", "k1", ALL_ZMM); \
    }

using Loop = void (*)(const Constants& constants, const uint8_t* a, uint8_t* w, int64_t count, const uint8_t* x0,
                      int64_t stride, float* sums, const Ahead& ahead);

#define DEFINE_LOOPS(NAME, GROUP, CODES, ASKED, GROUP_BYTES, HALF_BYTES) \
    DEFINE_LOOP(NAME##_rows_1, ROWS_1, GROUP, CODES, ASKED, GROUP_BYTES, HALF_BYTES) \
    DEFINE_LOOP(NAME##_rows_2, ROWS_2, GROUP, CODES, ASKED, GROUP_BYTES, HALF_BYTES) \
    DEFINE_LOOP(NAME##_rows_3, ROWS_3, GROUP, CODES, ASKED, GROUP_BYTES, HALF_BYTES) \
    DEFINE_LOOP(NAME##_rows_4, ROWS_4, GROUP, CODES, ASKED, GROUP_BYTES, HALF_BYTES) \
    struct NAME { \
        static constexpr Loop loops[MAX_ROWS_PER_DIRECT_CALL] = { \
            NAME##_rows_1, NAME##_rows_2, NAME##_rows_3, NAME##_rows_4}; \
        static constexpr int group_bytes = GROUP_BYTES, record_bytes = HALF_BYTES; \
    };

DEFINE_LOOPS(nibble, GROUP_32, NIBBLE, ASK_10, 256, 576)
DEFINE_LOOPS(nibble_minimum, GROUP_32_MINIMUM, NIBBLE, ASK_10, 256, 640)
DEFINE_LOOPS(book, GROUP_32, BOOK, ASK_10, 256, 576)
DEFINE_LOOPS(five, GROUP_32, FIVE, ASK_12, 320, 576)
DEFINE_LOOPS(five_minimum, GROUP_32_MINIMUM, FIVE, ASK_12, 320, 640)
DEFINE_LOOPS(byte, GROUP_32, BYTE, ASK_17, 512, 576)
DEFINE_LOOPS(six, GROUP_16, SIX, ASK_14, 384, 640)
DEFINE_LOOPS(three, GROUP_16, THREE, ASK_8, 192, 640)
DEFINE_LOOPS(two_minimum, GROUP_16_MINIMUM, TWO, ASK_6, 128, 768)

// clang-format on

constexpr Constants NIBBLE_CONSTANTS = make_constants(0xf0, 0xf0);
constexpr Constants FIVE_CONSTANTS = make_constants(0x78, 0xf8);
constexpr Constants SIX_CONSTANTS = make_constants(0x3c, 0xfc);
constexpr Constants THREE_CONSTANTS = make_constants(0x60, 0xe0);
constexpr Constants TWO_CONSTANTS = make_constants(0xc0, 0xc0);
constexpr Constants IQ4_NL_CONSTANTS = make_book(IQ4_NL_CODES, 0);
constexpr Constants MXFP4_CONSTANTS = make_book(MXFP4_CODES, 3);

template <FormatId format, typename Loops, const Constants& constants>
void multiply(const uint8_t* groups, uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes,
              int num_rows, float* sums, const Ahead& ahead) {
    static_assert(Loops::group_bytes == tile_layout(format).group_bytes);
    static_assert(Loops::record_bytes == half_record_bytes(format));
    Loops::loops[num_rows - 1](constants, groups, records, num_groups, prepared, row_bytes, sums, ahead);
}

}  // namespace

MultiplyDirectFunction direct_function(FormatId format) {
    switch (format) {
        case FormatId::Q4_0:
            return multiply<FormatId::Q4_0, nibble, NIBBLE_CONSTANTS>;
        case FormatId::Q4_1:
            return multiply<FormatId::Q4_1, nibble_minimum, NIBBLE_CONSTANTS>;
        case FormatId::Q5_0:
            return multiply<FormatId::Q5_0, five, FIVE_CONSTANTS>;
        case FormatId::Q5_1:
            return multiply<FormatId::Q5_1, five_minimum, FIVE_CONSTANTS>;
        case FormatId::Q8_0:
            return multiply<FormatId::Q8_0, byte, NIBBLE_CONSTANTS>;
        case FormatId::Q2_K:
            return multiply<FormatId::Q2_K, two_minimum, TWO_CONSTANTS>;
        case FormatId::Q3_K:
            return multiply<FormatId::Q3_K, three, THREE_CONSTANTS>;
        case FormatId::Q4_K:
            return multiply<FormatId::Q4_K, nibble_minimum, NIBBLE_CONSTANTS>;
        case FormatId::Q5_K:
            return multiply<FormatId::Q5_K, five_minimum, FIVE_CONSTANTS>;
        case FormatId::Q6_K:
            return multiply<FormatId::Q6_K, six, SIX_CONSTANTS>;
        case FormatId::IQ4_NL:
            return multiply<FormatId::IQ4_NL, book, IQ4_NL_CONSTANTS>;
        case FormatId::MXFP4:
            return multiply<FormatId::MXFP4, book, MXFP4_CONSTANTS>;
        default:
            return nullptr;
    }
}

}  // namespace ridgeline::avx512

#endif
