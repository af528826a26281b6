/* Intel's matrix tiles on processors without them, for tests: loaded before a program, it catches the signal of an instruction
 * that the processor does not know, and does what the manual says of it.
 *
 * Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TILELOADDT1, TILESTORED, TILEZERO,
 * TILERELEASE, TDPBSSD, TDPBF16PS. Where the manual has the processor refuse (tiles that are not configured, more rows than a tile
 * has, operands that are the same), the process ends with a message. `.ci/tiles` builds and uses it.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

struct tile {
    unsigned rows, row_bytes;
    uint8_t data[ROWS][ROW_BYTES];
};

/* A thread's. */
static __thread struct {
    int configured;
    struct tile tile[TILES];
} state;

static atomic_ulong emulated;

/* The program looks for it. */
const int umm_tiles_are_emulated = 1;

static _Noreturn void refuse(const char *why) {
    static const char who[] = "emulated tiles: ";
    (void)!write(STDERR_FILENO, who, sizeof who - 1);
    (void)!write(STDERR_FILENO, why, strlen(why));
    (void)!write(STDERR_FILENO, "\n", 1);
    abort();
}

/* What an instruction names. */
struct instruction {
    unsigned prefix;  /* 0: none, 1: 66, 2: F3, 3: F2 */
    unsigned opcode;
    unsigned mod, reg, rm;
    unsigned third;   /* the register in the VEX prefix */
    int beyond;       /* whether it names a register from the ninth on */
    uint8_t *memory;  /* without the index */
    int64_t stride;   /* the index, scaled */
    unsigned length;
};

static int64_t general(const ucontext_t *context, unsigned number) {
    static const int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[place[number]];
}

/* Three bytes of VEX, no width, 128 bits, of the map 0F38: all of the tiles' instructions begin so. */
static int decode(const ucontext_t *context, const uint8_t *code, struct instruction *out) {
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0)
        return 0;
    unsigned index_high = code[1] & 0x40 ? 0 : 8, base_high = code[1] & 0x20 ? 0 : 8;
    out->prefix = code[2] & 3;
    out->third = ~(code[2] >> 3) & 15;
    out->beyond = (code[1] & 0x80) == 0 || ((code[4] >> 6) == 3 && (code[1] & 0x20) == 0);
    out->opcode = code[3];
    out->mod = code[4] >> 6, out->reg = code[4] >> 3 & 7, out->rm = code[4] & 7;
    out->length = 5;
    out->memory = NULL, out->stride = 0;
    if (out->mod == 3)
        return 1;
    int64_t address;
    unsigned base = out->rm;
    if (out->rm == 4) {
        uint8_t sib = code[out->length++];
        unsigned index = (sib >> 3 & 7) | index_high;
        base = sib & 7;
        if (index != 4)
            out->stride = (int64_t)((uint64_t)general(context, index) << (sib >> 6));
    }
    if (out->mod == 0 && base == 5)
        refuse("an address without a base");
    address = general(context, base | base_high);
    if (out->mod == 1) {
        address += (int8_t)code[out->length];
        out->length += 1;
    } else if (out->mod == 2) {
        int32_t displacement;
        memcpy(&displacement, code + out->length, 4);
        address += displacement;
        out->length += 4;
    }
    out->memory = (uint8_t *)address;
    return 1;
}

static void configure(const uint8_t *memory) {
    if (memory[0] != 1 || memory[1] != 0)
        refuse("a configuration of another kind than palette 1 from row 0 on");
    for (unsigned i = 2; i < 16; i++)
        if (memory[i] != 0)
            refuse("a configuration with something in what is reserved");
    memset(&state, 0, sizeof state);
    for (unsigned i = 0; i < 16; i++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, memory + 16 + 2 * i, 2);
        unsigned rows = memory[48 + i];
        if (rows > ROWS || row_bytes > ROW_BYTES || row_bytes % 4 != 0 || !rows != !row_bytes || (i >= TILES && rows))
            refuse("a configuration with a tile of an impossible size");
        if (i < TILES)
            state.tile[i].rows = rows, state.tile[i].row_bytes = row_bytes;
    }
    state.configured = 1;
}

static struct tile *tile(unsigned number) {
    if (!state.configured || number >= TILES || state.tile[number].rows == 0)
        refuse("a tile that is not configured");
    return &state.tile[number];
}

static void clear_from(struct tile *t, unsigned row) {
    for (; row < ROWS; row++)
        memset(t->data[row], 0, ROW_BYTES);
}

static void load(struct tile *to, const uint8_t *memory, int64_t stride) {
    for (unsigned r = 0; r < to->rows; r++, memory += stride) {
        memset(to->data[r], 0, ROW_BYTES);
        memcpy(to->data[r], memory, to->row_bytes);
    }
    clear_from(to, to->rows);
}

static void store(uint8_t *memory, int64_t stride, const struct tile *from) {
    for (unsigned r = 0; r < from->rows; r++, memory += stride)
        memcpy(memory, from->data[r], from->row_bytes);
}

static void check_product(const struct tile *sums, const struct tile *rows, const struct tile *columns) {
    if (sums == rows || sums == columns || rows == columns)
        refuse("a product of tiles that are the same");
    if (rows->row_bytes / 4 != columns->rows || sums->rows != rows->rows || sums->row_bytes != columns->row_bytes)
        refuse("a product of tiles that do not fit");
}

/* TDPBSSD: four signed bytes times four signed bytes, added to 32 bits, which wrap. */
static void add_products_of_bytes(struct tile *sums, const struct tile *rows, const struct tile *columns) {
    check_product(sums, rows, columns);
    for (unsigned m = 0; m < sums->rows; m++) {
        int32_t sum[ROW_BYTES / 4];
        memcpy(sum, sums->data[m], ROW_BYTES);
        for (unsigned k = 0; k < columns->rows; k++) {
            const int8_t *a = (const int8_t *)rows->data[m] + 4 * k, *b = (const int8_t *)columns->data[k];
            for (unsigned n = 0; n < ROW_BYTES / 4; n++) {
                int32_t product = 0;
                for (unsigned i = 0; i < 4; i++)
                    product += (int32_t)a[i] * b[4 * n + i];
                sum[n] = (int32_t)((uint32_t)sum[n] + (uint32_t)product);
            }
        }
        memcpy(sums->data[m], sum, sums->row_bytes);
    }
    clear_from(sums, sums->rows);
}

static float of_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

/* TDPBF16PS: the pairs' even products summed from zero by fused multiply-adds, the odd ones too, then both together added to what
 * is there. A function of its own, so that no sum leaves the rounding set around it. */
static __attribute__((noinline)) void sum_products_of_bf16(struct tile *sums, const struct tile *rows, const struct tile *columns) {
    for (unsigned m = 0; m < sums->rows; m++) {
        float sum[ROW_BYTES / 4], half[2][ROW_BYTES / 4] = {{0}};
        memcpy(sum, sums->data[m], ROW_BYTES);
        for (unsigned k = 0; k < columns->rows; k++) {
            uint16_t a[2], b[ROW_BYTES / 2];
            memcpy(a, rows->data[m] + 4 * k, sizeof a);
            memcpy(b, columns->data[k], sizeof b);
            for (unsigned i = 0; i < 2; i++)
                for (unsigned n = 0; n < ROW_BYTES / 4; n++)
                    half[i][n] = __builtin_fmaf(of_bf16(a[i]), of_bf16(b[2 * n + i]), half[i][n]);
        }
        for (unsigned n = 0; n < ROW_BYTES / 4; n++) {
            float both = half[0][n] + half[1][n];
            sum[n] = sum[n] + both;
        }
        memcpy(sums->data[m], sum, sums->row_bytes);
    }
}

/* To the nearest, exceptions masked; what is too small for a normal number is zero, before and after. */
static void add_products_of_bf16(struct tile *sums, const struct tile *rows, const struct tile *columns) {
    check_product(sums, rows, columns);
    unsigned before = _mm_getcsr();
    _mm_setcsr(0x1f80 | 0x8040);
    sum_products_of_bf16(sums, rows, columns);
    _mm_setcsr(before);
    clear_from(sums, sums->rows);
}

/* Whether it was one of the tiles' instructions. */
static int emulate(const struct instruction *i) {
    enum { NONE, P66, F3, F2 };
    int memory = i->mod != 3, product = i->opcode == 0x5e || i->opcode == 0x5c;
    if (i->beyond || (!product && i->third != 0))
        return 0;
    if (i->opcode == 0x49 && i->prefix == NONE && memory && i->reg == 0)
        configure(i->memory);
    else if (i->opcode == 0x49 && i->prefix == NONE && !memory && i->reg == 0 && i->rm == 0)
        memset(&state, 0, sizeof state);
    else if (i->opcode == 0x49 && i->prefix == F2 && !memory && i->rm == 0)
        clear_from(tile(i->reg), 0);
    else if (i->opcode == 0x4b && (i->prefix == F2 || i->prefix == P66) && memory && i->rm == 4)
        load(tile(i->reg), i->memory, i->stride);
    else if (i->opcode == 0x4b && i->prefix == F3 && memory && i->rm == 4)
        store(i->memory, i->stride, tile(i->reg));
    else if (i->opcode == 0x5e && i->prefix == F2 && !memory)
        add_products_of_bytes(tile(i->reg), tile(i->rm), tile(i->third));
    else if (i->opcode == 0x5c && i->prefix == F3 && !memory)
        add_products_of_bf16(tile(i->reg), tile(i->rm), tile(i->third));
    else
        return 0;
    return 1;
}

static void on_unknown(int signal_number, siginfo_t *info, void *context_pointer) {
    (void)info;
    ucontext_t *context = context_pointer;
    struct instruction instruction;
    const uint8_t *code = (const uint8_t *)context->uc_mcontext.gregs[REG_RIP];
    if (!decode(context, code, &instruction) || !emulate(&instruction)) {
        /* Somebody else's: it comes again, and ends the process. */
        signal(signal_number, SIG_DFL);
        return;
    }
    context->uc_mcontext.gregs[REG_RIP] += instruction.length;
    atomic_fetch_add_explicit(&emulated, 1, memory_order_relaxed);
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_unknown;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, NULL);
}

__attribute__((destructor)) static void end(void) {
    unsigned long count = atomic_load(&emulated);
    if (count > 0)
        fprintf(stderr, "emulated tiles: %lu instructions\n", count);
}
