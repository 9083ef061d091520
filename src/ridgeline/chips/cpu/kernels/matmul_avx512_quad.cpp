// Inner loops of the int8 products over records of four tiles, for many rows. Needs AVX512_VNNI.
//
// Four tiles (64 outputs) times R <= 3 rows:
//   zmm0..11   sums: of row r and tile t in 4r + t
//   zmm12..23  int32 products of a group, in the same order
//   zmm24..26  four activations of each row, broadcast
//   zmm27, 28  codes;  zmm29 high parts, the scale or the sum of a row;  zmm30, 31 products of high parts, scales
//   k1..3      which bytes of the extended values' codes come from the second line
// This shape was chosen by counting: the two pipes that multiply are what a core of Zen 5 has least of, and here they
// are never kept waiting by loads (of which a pair of tiles times six rows needs a quarter more). What does not
// multiply goes to other pipes: a scale of the weights times that of the activations is an addition of integers, see
// QuadScales. Extended values are multiplied between the code lines, since at the end of a group, beside the scaling,
// they would fill the queues. The order of the operations on one output is that of the portable kernel, so are the
// bits.
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include "matmul_avx512_assembly.h"

namespace ridgeline::avx512 {

namespace {

// clang-format off

#define QUAD_ROW_0 "(%[x])"
#define QUAD_ROW_1 "(%[x],%[stride])"
#define QUAD_ROW_2 "(%[x],%[stride],2)"
#define NEXT_ROW_0 "(%[rows_ahead])"
#define NEXT_ROW_1 "(%[rows_ahead],%[stride])"
#define NEXT_ROW_2 "(%[rows_ahead],%[stride],2)"
#define QUAD_SUM_0_0 "%%zmm0"
#define QUAD_SUM_1_0 "%%zmm1"
#define QUAD_SUM_2_0 "%%zmm2"
#define QUAD_SUM_3_0 "%%zmm3"
#define QUAD_SUM_0_1 "%%zmm4"
#define QUAD_SUM_1_1 "%%zmm5"
#define QUAD_SUM_2_1 "%%zmm6"
#define QUAD_SUM_3_1 "%%zmm7"
#define QUAD_SUM_0_2 "%%zmm8"
#define QUAD_SUM_1_2 "%%zmm9"
#define QUAD_SUM_2_2 "%%zmm10"
#define QUAD_SUM_3_2 "%%zmm11"
#define QUAD_DOT_0_0 "%%zmm12"
#define QUAD_DOT_1_0 "%%zmm13"
#define QUAD_DOT_2_0 "%%zmm14"
#define QUAD_DOT_3_0 "%%zmm15"
#define QUAD_DOT_0_1 "%%zmm16"
#define QUAD_DOT_1_1 "%%zmm17"
#define QUAD_DOT_2_1 "%%zmm18"
#define QUAD_DOT_3_1 "%%zmm19"
#define QUAD_DOT_0_2 "%%zmm20"
#define QUAD_DOT_1_2 "%%zmm21"
#define QUAD_DOT_2_2 "%%zmm22"
#define QUAD_DOT_3_2 "%%zmm23"
#define QUAD_X_0 "%%zmm24"
#define QUAD_X_1 "%%zmm25"
#define QUAD_X_2 "%%zmm26"
#define SECOND_0 "%%k1"
#define SECOND_1 "%%k2"
#define SECOND_2 "%%k3"

#define EACH_TILE(F, R) F(R, 0) F(R, 1) F(R, 2) F(R, 3)
#define TILE_PLACE_0 "0"
#define TILE_PLACE_1 "64"
#define TILE_PLACE_2 "%c[pair_sums]"
#define TILE_PLACE_3 "%c[pair_sums]+64"
#define SUM_PLACE(R, T) "128*" #R "+" TILE_PLACE_##T "(%[sums])"
#define LOAD_QUAD_SUM(R, T) "vmovups " SUM_PLACE(R, T) ", " QUAD_SUM_##T##_##R "\n\t"
#define STORE_QUAD_SUM(R, T) "vmovups " QUAD_SUM_##T##_##R ", " SUM_PLACE(R, T) "\n\t"
#define LOAD_QUAD_SUMS(R, _) EACH_TILE(LOAD_QUAD_SUM, R)
#define STORE_QUAD_SUMS(R, _) EACH_TILE(STORE_QUAD_SUM, R)

// What the products begin with: 128 * minus the sum of the activations (codes are around 128), or zero.
#define COPY_TO_TILES(R) \
    "vmovdqa64 " QUAD_DOT_0_##R ", " QUAD_DOT_1_##R "\n\t" \
    "vmovdqa64 " QUAD_DOT_0_##R ", " QUAD_DOT_2_##R "\n\t" \
    "vmovdqa64 " QUAD_DOT_0_##R ", " QUAD_DOT_3_##R "\n\t"
#define BEGIN_WITH_ZERO(R, _) "vpxord " QUAD_DOT_0_##R ", " QUAD_DOT_0_##R ", " QUAD_DOT_0_##R "\n\t" COPY_TO_TILES(R)

#define BEGIN_WITH_SUM(R, _) \
    "vpbroadcastd 36" QUAD_ROW_##R ", " QUAD_DOT_0_##R "\n\t" \
    "vpslld $7, " QUAD_DOT_0_##R ", " QUAD_DOT_0_##R "\n\t" \
    COPY_TO_TILES(R)

// Four activations of every row times a code line; then of a line of each tile.
#define LOAD_X(R, V) "vpbroadcastd 4*" #V QUAD_ROW_##R ", " QUAD_X_##R "\n\t"
#define QUAD_DOT(R, T, W) "vpdpbusd " QUAD_X_##R ", " W ", " QUAD_DOT_##T##_##R "\n\t"
#define DOTS_1(T, W) QUAD_DOT(0, T, W)
#define DOTS_2(T, W) DOTS_1(T, W) QUAD_DOT(1, T, W)
#define DOTS_3(T, W) DOTS_2(T, W) QUAD_DOT(2, T, W)
#define TILE_LINE(N, V, T, W) "vmovdqa64 64*" #V "+" #T "*%c[tile](%[w]), " W "\n\t" DOTS_##N(T, W)
#define QUAD_LINE(N, V) \
    ROWS_##N(LOAD_X, V) \
    TILE_LINE(N, V, 0, "%%zmm27") TILE_LINE(N, V, 1, "%%zmm28") \
    TILE_LINE(N, V, 2, "%%zmm27") TILE_LINE(N, V, 3, "%%zmm28")

// Where the codes that meet a row's extended values lie, and their high parts in zmm29.
#define FIND_LINES(R) \
    "movzwl 56" QUAD_ROW_##R ", %k[line0]\n\t" \
    "movzwl 58" QUAD_ROW_##R ", %k[line1]\n\t"
#define LOAD_HIGH(R) \
    FIND_LINES(R) \
    "vpbroadcastd 52" QUAD_ROW_##R ", %%zmm29\n\t" \
    "vptestmb %%zmm29, %%zmm29, " SECOND_##R "\n\t" \
    "vpord 48" QUAD_ROW_##R "%{1to16%}, %%zmm29, %%zmm29\n\t"

// product += 128 * codes at the extended values * high parts
#define EXTEND(R, T, W, Q) \
    "vmovdqa64 " #T "*%c[tile](%[w],%[line0]), " W "\n\t" \
    "vpblendmb " #T "*%c[tile](%[w],%[line1]), " W ", " W "%{" SECOND_##R "%}\n\t" \
    "vpxord " Q ", " Q ", " Q "\n\t" \
    "vpdpbusd %%zmm29, " W ", " Q "\n\t" \
    "vpslld $7, " Q ", " Q "\n\t" \
    "vpaddd " Q ", " QUAD_DOT_##T##_##R ", " QUAD_DOT_##T##_##R "\n\t"
#define EXTEND_PAIR_0(R) EXTEND(R, 0, "%%zmm27", "%%zmm30") EXTEND(R, 1, "%%zmm28", "%%zmm31")
#define EXTEND_PAIR_1(R) EXTEND(R, 2, "%%zmm27", "%%zmm30") EXTEND(R, 3, "%%zmm28", "%%zmm31")

// sum += product * (scale of the weights * scale of the activations). The scale is also looked at for what is not
// finite. OFFSET is that of the scales in a quarter of the record.
#define FIND_SCALE(R) \
    "mov 32" QUAD_ROW_##R ", %k[line0]\n\t" \
    "lea 0x800000(%[line0]), %k[line1]\n\t" \
    "shr $15, %k[line0]\n\t" \
    "or %k[line1], %k[strange]\n\t" \
    "and $0xc0, %k[line0]\n\t" \
    "vpbroadcastd 32" QUAD_ROW_##R ", %%zmm29\n\t"
#define SCALE_TILE(R, T, Q, OFFSET) \
    "vcvtdq2ps " QUAD_DOT_##T##_##R ", " QUAD_DOT_##T##_##R "\n\t" \
    "vpaddd " OFFSET "+" #T "*%c[tile](%[w],%[line0]), %%zmm29, " Q "\n\t" \
    "vfmadd231ps " Q ", " QUAD_DOT_##T##_##R ", " QUAD_SUM_##T##_##R "\n\t"
#define FIND_SCALE_AGAIN(R) \
    "mov 32" QUAD_ROW_##R ", %k[line0]\n\t" \
    "shr $15, %k[line0]\n\t" \
    "and $0xc0, %k[line0]\n\t" \
    "vpbroadcastd 32" QUAD_ROW_##R ", %%zmm29\n\t"
#define SCALE(R, OFFSET) FIND_SCALE(R) SCALE_TILES(R, OFFSET)
#define SCALE_AGAIN(R, OFFSET) FIND_SCALE_AGAIN(R) SCALE_TILES(R, OFFSET)
#define SCALE_TILES(R, OFFSET) \
    SCALE_TILE(R, 0, "%%zmm30", OFFSET) SCALE_TILE(R, 1, "%%zmm31", OFFSET) \
    SCALE_TILE(R, 2, "%%zmm30", OFFSET) SCALE_TILE(R, 3, "%%zmm31", OFFSET)
// sum += minimum * sum of the activations
#define ADD_QUAD_MINIMUM(R, T, OFFSET) \
    "vfmadd231ps " OFFSET "+" #T "*%c[tile](%[w]), %%zmm29, " QUAD_SUM_##T##_##R "\n\t"
#define ADD_QUAD_MINIMUMS(R, OFFSET) \
    ADD_QUAD_MINIMUM(R, 0, OFFSET) ADD_QUAD_MINIMUM(R, 1, OFFSET) \
    ADD_QUAD_MINIMUM(R, 2, OFFSET) ADD_QUAD_MINIMUM(R, 3, OFFSET)
#define SCALE_32(R, _) SCALE(R, "512")
#define SCALE_32_MINIMUM(R, _) \
    SCALE(R, "512") "vbroadcastss 40" QUAD_ROW_##R ", %%zmm29\n\t" ADD_QUAD_MINIMUMS(R, "768")

// Groups with one scale: rows' extended values one after the other, in halves.
#define QUAD_GROUP_1 \
    QUAD_LINE(1, 0) LOAD_HIGH(0) EXTEND_PAIR_0(0) QUAD_LINE(1, 1) QUAD_LINE(1, 2) EXTEND_PAIR_1(0) \
    QUAD_LINE(1, 3) QUAD_LINE(1, 4) QUAD_LINE(1, 5) QUAD_LINE(1, 6) QUAD_LINE(1, 7)
#define QUAD_GROUP_2 \
    QUAD_LINE(2, 0) LOAD_HIGH(0) EXTEND_PAIR_0(0) QUAD_LINE(2, 1) EXTEND_PAIR_1(0) \
    QUAD_LINE(2, 2) LOAD_HIGH(1) EXTEND_PAIR_0(1) QUAD_LINE(2, 3) EXTEND_PAIR_1(1) \
    QUAD_LINE(2, 4) QUAD_LINE(2, 5) QUAD_LINE(2, 6) QUAD_LINE(2, 7)
#define QUAD_GROUP_3 \
    QUAD_LINE(3, 0) LOAD_HIGH(0) EXTEND_PAIR_0(0) QUAD_LINE(3, 1) EXTEND_PAIR_1(0) \
    QUAD_LINE(3, 2) LOAD_HIGH(1) EXTEND_PAIR_0(1) QUAD_LINE(3, 3) EXTEND_PAIR_1(1) \
    QUAD_LINE(3, 4) LOAD_HIGH(2) EXTEND_PAIR_0(2) QUAD_LINE(3, 5) EXTEND_PAIR_1(2) \
    QUAD_LINE(3, 6) QUAD_LINE(3, 7)
#define QUAD_32(N) ROWS_##N(BEGIN_WITH_SUM, 0) QUAD_GROUP_##N ROWS_##N(SCALE_32, 0)
#define QUAD_32_MINIMUM(N) ROWS_##N(BEGIN_WITH_ZERO, 0) QUAD_GROUP_##N ROWS_##N(SCALE_32_MINIMUM, 0)

// Groups with a scale for each half: codes at the extended values are looked up once, and multiplied with the high parts
// of the first half and with those of the second. The products of the second half begin with what this leaves in
// `seconds`.
#define LOAD_HIGH_OF_HALVES(R) \
    FIND_LINES(R) \
    "kmovw 60" QUAD_ROW_##R ", %%k4\n\t" \
    "kmovw 62" QUAD_ROW_##R ", %%k5\n\t" \
    "vpbroadcastd 48" QUAD_ROW_##R ", %%zmm29%{%%k4%}%{z%}\n\t" \
    "vpbroadcastd 52" QUAD_ROW_##R ", %%zmm30\n\t" \
    "vptestmb %%zmm30, %%zmm30, %%k1\n\t" \
    "vpord %%zmm30, %%zmm29, %%zmm29%{%%k5%}\n\t" \
    "vpord 48" QUAD_ROW_##R "%{1to16%}, %%zmm30, %%zmm30\n\t" \
    "vpxord %%zmm29, %%zmm30, %%zmm30\n\t"
#define START_TILE(R, T, Q) \
    "vmovdqa64 " #T "*%c[tile](%[w],%[line0]), %%zmm27\n\t" \
    "vpblendmb " #T "*%c[tile](%[w],%[line1]), %%zmm27, %%zmm27%{%%k1%}\n\t" \
    "vmovdqa64 %%zmm31, " Q "\n\t" \
    "vpdpbusd %%zmm29, %%zmm27, " QUAD_DOT_##T##_##R "\n\t" \
    "vpdpbusd %%zmm30, %%zmm27, " Q "\n\t" \
    "vpslld $7, " QUAD_DOT_##T##_##R ", " QUAD_DOT_##T##_##R "\n\t" \
    "vpslld $7, " Q ", " Q "\n\t" \
    "vmovdqa64 " Q ", 256*" #R "+64*" #T "(%[seconds])\n\t"
#define START_TILES(R) \
    START_TILE(R, 0, "%%zmm24") START_TILE(R, 1, "%%zmm25") START_TILE(R, 2, "%%zmm26") START_TILE(R, 3, "%%zmm28")
#define START_SUMS(R) \
    "vpbroadcastd 44" QUAD_ROW_##R ", " QUAD_DOT_0_##R "\n\t" \
    "vpbroadcastd 36" QUAD_ROW_##R ", %%zmm31\n\t" \
    "vpsubd " QUAD_DOT_0_##R ", %%zmm31, %%zmm31\n\t" \
    COPY_TO_TILES(R)
#define START_HALVES(R, _) LOAD_HIGH_OF_HALVES(R) START_SUMS(R) START_TILES(R)
#define START_HALVES_ZERO(R, _) \
    LOAD_HIGH_OF_HALVES(R) BEGIN_WITH_ZERO(R, 0) "vpxord %%zmm31, %%zmm31, %%zmm31\n\t" START_TILES(R)
#define LOAD_SECOND(R, T) "vmovdqa64 256*" #R "+64*" #T "(%[seconds]), " QUAD_DOT_##T##_##R "\n\t"
#define LOAD_SECONDS(R, _) EACH_TILE(LOAD_SECOND, R)
#define QUAD_FIRST_LINES(N) QUAD_LINE(N, 0) QUAD_LINE(N, 1) QUAD_LINE(N, 2) QUAD_LINE(N, 3)
#define QUAD_SECOND_LINES(N) QUAD_LINE(N, 4) QUAD_LINE(N, 5) QUAD_LINE(N, 6) QUAD_LINE(N, 7)
#define SCALE_SUM_OF_16(R) \
    "vcvtdq2ps %%zmm30, %%zmm30\n\t" \
    "vmulps 32" QUAD_ROW_##R "%{1to16%}, %%zmm30, %%zmm29\n\t"
#define SCALE_FIRST(R, _) SCALE(R, "512")
#define SCALE_SECOND(R, _) SCALE_AGAIN(R, "768")
#define SCALE_FIRST_MINIMUM(R, _) \
    SCALE(R, "512") "vpbroadcastd 44" QUAD_ROW_##R ", %%zmm30\n\t" SCALE_SUM_OF_16(R) ADD_QUAD_MINIMUMS(R, "1024")
#define SCALE_SECOND_MINIMUM(R, _) \
    SCALE_AGAIN(R, "768") "vpbroadcastd 36" QUAD_ROW_##R ", %%zmm30\n\t" \
    "vpsubd 44" QUAD_ROW_##R "%{1to16%}, %%zmm30, %%zmm30\n\t" SCALE_SUM_OF_16(R) ADD_QUAD_MINIMUMS(R, "1088")
#define QUAD_16(N) \
    ROWS_##N(START_HALVES, 0) QUAD_FIRST_LINES(N) ROWS_##N(SCALE_FIRST, 0) \
    ROWS_##N(LOAD_SECONDS, 0) QUAD_SECOND_LINES(N) ROWS_##N(SCALE_SECOND, 0)
#define QUAD_16_MINIMUM(N) \
    ROWS_##N(START_HALVES_ZERO, 0) QUAD_FIRST_LINES(N) ROWS_##N(SCALE_FIRST_MINIMUM, 0) \
    ROWS_##N(LOAD_SECONDS, 0) QUAD_SECOND_LINES(N) ROWS_##N(SCALE_SECOND_MINIMUM, 0)

// Activations of the next call and packed weights of the next slab are asked for on the way.
#define ASK_ROW(R, _) "prefetcht0 " NEXT_ROW_##R "\n\t"
#define ASK_WEIGHTS \
    "mov %[asked], %[line0]\n\t" \
    "2:\n\t" \
    "prefetcht0 (%[next])\n\t" \
    "add $64, %[next]\n\t" \
    "dec %[line0]\n\t" \
    "jnz 2b\n\t"

#define DEFINE_QUAD_LOOP(NAME, N, GROUP, TILE_BYTES) \
    bool NAME(const uint8_t* w, int64_t count, const uint8_t* x, int64_t stride, float* sums, \
              const uint8_t* rows_ahead, const QuadAhead& ahead) { \
        const uint8_t* next = ahead.next; \
        int64_t line0, line1; \
        int64_t strange = 0; \
        alignas(64) int32_t seconds[MAX_ROWS_PER_QUAD_CALL * QUAD_TILES * TILE_ROWS]; \
        asm volatile( \
            ROWS_##N(LOAD_QUAD_SUMS, 0) \
            ".p2align 6\n\t" \
            "1:\n\t" \
            ASK_WEIGHTS \
            ROWS_##N(ASK_ROW, 0) \
            GROUP(N) \
            "add $64, %[x]\n\t" \
            "add $64, %[rows_ahead]\n\t" \
            "add $4*%c[tile], %[w]\n\t" \
            "dec %[count]\n\t" \
            "jnz 1b\n\t" \
            "test %k[strange], %k[strange]\n\t" \
            "js 3f\n\t" \
            ROWS_##N(STORE_QUAD_SUMS, 0) \
            "3:\n\t" \
            : [w] "+r"(w), [count] "+r"(count), [x] "+r"(x), [next] "+r"(next), [rows_ahead] "+r"(rows_ahead), \
              [line0] "=&r"(line0), [line1] "=&r"(line1), [strange] "+r"(strange) \
            : [stride] "r"(stride), [sums] "r"(sums), [seconds] "r"(seconds), [asked] "r"(ahead.lines), [tile] "i"(TILE_BYTES), \
              [pair_sums] "i"(PAIR_SUM_BYTES) \
            : "memory", "cc", "k1", "k2", "k3", "k4", "k5", ALL_ZMM); \
        return static_cast<int32_t>(strange) >= 0; \
    }

#define DEFINE_QUAD_LOOPS(NAME, GROUP, TILE_BYTES) \
    DEFINE_QUAD_LOOP(NAME##_rows_1, 1, GROUP, TILE_BYTES) \
    DEFINE_QUAD_LOOP(NAME##_rows_2, 2, GROUP, TILE_BYTES) \
    DEFINE_QUAD_LOOP(NAME##_rows_3, 3, GROUP, TILE_BYTES) \
    bool NAME(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows, \
              float* sums, const uint8_t* rows_ahead, const QuadAhead& ahead) { \
        constexpr decltype(&NAME##_rows_1) loops[MAX_ROWS_PER_QUAD_CALL] = { \
            NAME##_rows_1, NAME##_rows_2, NAME##_rows_3}; \
        return loops[num_rows - 1](records, num_groups, prepared, row_bytes, sums, rows_ahead, ahead); \
    }

DEFINE_QUAD_LOOPS(quad_32, QUAD_32, 768)
DEFINE_QUAD_LOOPS(quad_32_minimum, QUAD_32_MINIMUM, 832)
DEFINE_QUAD_LOOPS(quad_16, QUAD_16, 1024)
DEFINE_QUAD_LOOPS(quad_16_minimum, QUAD_16_MINIMUM, 1152)

// clang-format on

static_assert(quad_record_bytes(FormatId::Q4_0) == 4 * 768 && quad_record_bytes(FormatId::Q4_1) == 4 * 832);
static_assert(quad_record_bytes(FormatId::Q6_K) == 4 * 1024 && quad_record_bytes(FormatId::Q2_K) == 4 * 1152);

}  // namespace

MultiplyQuadFunction quad_function(FormatId format) {
    const TileLayout layout = tile_layout(format);
    if (layout.scales_per_group == 1) return layout.has_minimum ? quad_32_minimum : quad_32;
    return layout.has_minimum ? quad_16_minimum : quad_16;
}

}  // namespace ridgeline::avx512

#endif
