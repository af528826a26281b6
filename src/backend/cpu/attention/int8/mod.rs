//! Attention in 8 bits: queries, keys and values are quantised, every row of a head with its
//! own scale; products are exact.
//!
//! One pass goes over the keys, a block of [`KEYS`] slots at a time for up to [`ROWS`] queries. With `d` a dot product
//! of quanta and `s` the scales, a slot's base-2 logit is `t = d s_q s_k / (sqrt(head_dim) ln 2)`. Its weight includes
//! the value's scale and is quantised to seven bits relative to the block's largest: `u = 126 * 2^(t + log2 s_v - m)`,
//! with `m` the largest exponent. Over slots sixteen apart, the running sum of `u` is rounded, and a slot's quantised
//! weight `p` is what the rounded sum grows by: many small weights that are alike do not all round the same way. The
//! block adds `2^m / 126` times the sum of `p v` to the result, and the same multiple of the sum of `u / s_v` to the
//! denominator. Blocks are added up as in an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867), relative
//! to a whole number no less than every `m` so far and the sink, so that rescaling is exact. (Weights quantised block
//! by block: Chen et al. 2024, INT-FlashAttention, arXiv:2409.16997.)
//!
//! It is meant for logits of up to 10^5, beyond which `f32` has no room for `log2 s_v` beside them, and for values
//! whose magnitudes lie within a factor of 10^20 of one another. A row of values that are all zero has a scale of 2^-60
//! and keeps its weight beside others of up to 10^24.
//!
//! Weights have seven bits, not eight, so that kernels that multiply signed values and those that multiply unsigned
//! ones agree. [`loops`] is for every processor, [`vectors`] has the same bits where multiply-add is fused; [`vnni`]
//! and [`tiles`] interleave the products with what follows them.

mod loops;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vectors;
#[cfg(target_arch = "x86_64")]
mod vnni;

use super::{Queries, hide, inverse_of};
use crate::backend::cpu::aligned::AlignedVec;
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::amx::Tiles;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::backend::cpu::f32x16::Vectors;
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::int8::{Columns, Product, Rows};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::math;
use crate::backend::cpu::rows::even_block;
use crate::backend::kv_cache::{KvForm, KvLayout, SlotParam};

/// Most query rows worked on together: keys and values are read once for all of them. The state of so many rows lies
/// further away, but is touched only once per block.
const ROWS: usize = 192;

/// Slots in a block.
const KEYS: usize = KvForm::Int8.block();

/// Panels of a block's keys.
const PANELS: usize = KEYS / PANEL;

/// Quanta of a block's largest weight: one more, by rounding, still fits in seven bits.
const ONE: f32 = 126.0;

/// [`math::EXP2_NARROW`], scaled so that the largest weight is [`ONE`]. Adding to the exponents instead
/// would round those far from zero.
static QUANTA: [f32; 4] = {
    let [a, b, c, d] = math::EXP2_NARROW;
    [a * (ONE / d), b * (ONE / d), c * (ONE / d), ONE]
};

/// Exponents below it weigh nothing: the limit of normal numbers in `f32`.
const LOWEST: f32 = -math::EXP2_RANGE;

/// Stands for the largest exponent where there is none.
const LEAST: f32 = -1e30;

/// Buffers of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    queries: Rows,
    /// Products with a block's keys, as integer bits, then exponents, `[ROWS][KEYS]`.
    exponents: AlignedVec<f32>,
    /// `[ROWS][KEYS]`.
    weights: Rows,
    /// Products with a block's values, `[ROWS][stride of values]`.
    products: AlignedVec<i32>,
    /// Sums of weighted values, `[ROWS][stride of values]`.
    values: AlignedVec<f32>,
    state: State,
    #[cfg(target_arch = "x86_64")]
    items: tiles::Items,
}

/// The online softmax of each row.
struct State {
    /// The base-2 logit of one unit of a product of quanta, for a key of scale 1.
    factor: [f32; ROWS],
    /// Largest exponent of the block.
    largest: [f32; ROWS],
    /// Whole number subtracted from exponents: sums are in units of `2^reference`.
    reference: [f32; ROWS],
    /// Factor for the sums so far, since the reference has risen: a power of two.
    rescale: [f32; ROWS],
    /// Factor for the block's own sums.
    block_scale: [f32; ROWS],
    /// Sums of weights, each over every sixteenth slot.
    lanes: [[f32; PANEL]; ROWS],
}

impl Default for State {
    fn default() -> State {
        State {
            factor: [0.0; ROWS],
            largest: [LEAST; ROWS],
            reference: [LEAST; ROWS],
            rescale: [0.0; ROWS],
            block_scale: [0.0; ROWS],
            lanes: [[0.0; PANEL]; ROWS],
        }
    }
}

impl Scratch {
    pub(super) fn make_room(&mut self, isa: Isa, head_dim: usize) {
        let layout = layout(head_dim);
        let stride = stride_of_values(layout);
        self.queries.make_room(isa, ROWS, layout.depth());
        self.weights.make_room_for_bytes(isa, ROWS, KEYS);
        self.exponents.resize(ROWS * KEYS);
        self.products.resize(ROWS * stride);
        self.values.resize(ROWS * stride);
    }
}

/// Returns the layout of one head.
fn layout(head_dim: usize) -> KvLayout {
    KvLayout {
        form: KvForm::Int8,
        kv_heads: 1,
        head_dim,
    }
}

/// Returns the distance from one row of values to the next: whole pairs of columns, as tiles add them.
fn stride_of_values(layout: KvLayout) -> usize {
    layout.columns().next_multiple_of(2) * PANEL
}

/// Computes attention for all queries.
pub(super) fn attend(isa: Isa, queries: &Queries<'_>, scratch: &mut Scratch) {
    scratch.make_room(isa, queries.head_dim());
    let product;
    let kernel = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx512Bf16 => {
            assert!(isa.available(), "no {} here", isa.name());
            Kernel::Vnni
        }
        _ => {
            product = Product::new(isa);
            Kernel::with(&product, isa, queries.head_dim())
        }
    };
    let mut first = 0;
    while first < queries.count() {
        let rows = even_block(queries.count() - first, ROWS);
        let chunk = Chunk {
            queries,
            isa,
            kernel,
            first,
            rows,
            layout: layout(queries.head_dim()),
        };
        chunk.attend(scratch);
        first += rows;
    }
}

/// What computes a chunk.
#[derive(Clone, Copy)]
enum Kernel<'a> {
    Loops(&'a Product),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Vectors(Vectors, &'a Product),
    /// Products fused with what follows them.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// Products on tiles while vectors do all the rest.
    #[cfg(target_arch = "x86_64")]
    Tiles(&'a Tiles),
}

impl<'a> Kernel<'a> {
    /// Picks the best kernel for the product of `isa`.
    fn with(product: &'a Product, isa: Isa, head_dim: usize) -> Kernel<'a> {
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = product.tiles().filter(|_| tiles::takes(head_dim)) {
            return Kernel::Tiles(tiles);
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(vectors) = Vectors::best(isa) {
            return Kernel::Vectors(vectors, product);
        }
        let _ = (isa, head_dim);
        Kernel::Loops(product)
    }
}

/// Queries worked on together.
struct Chunk<'a> {
    queries: &'a Queries<'a>,
    isa: Isa,
    kernel: Kernel<'a>,
    first: usize,
    rows: usize,
    layout: KvLayout,
}

/// The parameters of a block's slots.
#[derive(Clone, Copy)]
struct SlotParams<'a> {
    key_offset: &'a [i32; KEYS],
    key_scale: &'a [f32; KEYS],
    value_log: &'a [f32; KEYS],
    value_inverse: &'a [f32; KEYS],
}

impl Chunk<'_> {
    fn attend(&self, scratch: &mut Scratch) {
        self.begin(scratch);
        let blocks = 0..self.queries.seen.blocks.len();
        match self.kernel {
            Kernel::Loops(product) => blocks.for_each(|at| {
                self.multiply_keys(product, at, scratch);
                loops::weigh(self, at, scratch);
                self.multiply_values(product, at, scratch);
                loops::add(self.rows, scratch);
            }),
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Kernel::Vectors(vectors, product) => blocks.for_each(|at| {
                self.multiply_keys(product, at, scratch);
                vectors::weigh(vectors, self, at, scratch);
                self.multiply_values(product, at, scratch);
                vectors::add(vectors, self.rows, scratch);
            }),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `attend` asserts that the instruction set is available before it chooses this kernel.
            Kernel::Vnni => blocks.for_each(|at| unsafe { vnni::go_over(self, at, scratch) }),
            #[cfg(target_arch = "x86_64")]
            Kernel::Tiles(tiles) => tiles::attend(tiles, self, scratch),
        }
        self.finish(scratch);
    }

    fn begin(&self, scratch: &mut Scratch) {
        let depth = self.layout.depth();
        let state = &mut scratch.state;
        let to_base_2 = self.queries.scale() * std::f32::consts::LOG2_E;
        for row in 0..self.rows {
            let query = self.queries.query(self.first + row);
            let scale = scratch.queries.quantize(self.isa, row, depth, query);
            let sink = self.queries.sink(self.first + row) * std::f32::consts::LOG2_E;
            state.factor[row] = scale * to_base_2;
            state.reference[row] = math::max(LEAST, sink.ceil());
            state.lanes[row] = [0.0; PANEL];
        }
        let padded = self.rows.next_multiple_of(PANEL);
        scratch.values[..padded * stride_of_values(self.layout)].fill(0.0);
    }

    /// Multiplies queries with a block's keys, into the place of exponents.
    fn multiply_keys(&self, product: &Product, at: usize, scratch: &mut Scratch) {
        let keys: &[i8] = bytemuck::cast_slice(self.queries.keys(at));
        let of_panel = PANEL * self.layout.depth();
        let columns = Columns {
            panel: |panel: usize| &keys[panel * of_panel..][..of_panel],
            count: PANELS,
            depth: self.layout.depth(),
            offset: Some(self.params(at).key_offset),
        };
        let products = bytemuck::cast_slice_mut(&mut scratch.exponents);
        product.multiply_into(&scratch.queries, self.rows, &columns, products, KEYS);
    }

    /// Multiplies weights with a block's values.
    fn multiply_values(&self, product: &Product, at: usize, scratch: &mut Scratch) {
        let columns = Columns {
            panel: |column: usize| {
                let values: &[i8] = bytemuck::cast_slice(self.queries.values(at, column));
                &values[..KEYS * PANEL]
            },
            count: self.layout.columns(),
            depth: KEYS,
            offset: None,
        };
        let stride = stride_of_values(self.layout);
        let (weights, products) = (&mut scratch.weights, &mut scratch.products);
        weights.widen(self.isa, self.rows, KEYS);
        product.multiply_into(weights, self.rows, &columns, products, stride);
    }

    fn finish(&self, scratch: &Scratch) {
        let (hd, stride) = (self.queries.head_dim(), stride_of_values(self.layout));
        for (row, values) in (0..self.rows).zip(scratch.values.chunks(stride)) {
            let lanes = math::Sum {
                lanes: scratch.state.lanes[row],
                tail: 0.0,
            };
            let sink = self.queries.sink(self.first + row);
            let weigh = math::SoftmaxWeight {
                offset: -scratch.state.reference[row],
                ..math::SoftmaxWeight::new(&math::EXP2_NARROW, LOWEST, 1.0)
            };
            // Unfused, since this function is not compiled for particular processors.
            let inverse = inverse_of(lanes.total() + weigh.of_sink::<false>(sink));
            // SAFETY: dropped before the next one is taken.
            let out = unsafe { self.queries.result(self.first + row, 0, hd) };
            for (out, value) in out.iter_mut().zip(values) {
                *out = value * inverse;
            }
        }
    }

    fn param(&self, at: usize, param: SlotParam) -> &[f32] {
        let queries = self.queries;
        let place = queries.seen.blocks[at].params(queries.kv_head, param);
        queries.call.arena.get(place)
    }

    /// # Panics
    /// When a block has other than [`KEYS`] slots.
    #[expect(clippy::expect_used, reason = "a block's slots")]
    fn params(&self, at: usize) -> SlotParams<'_> {
        let of = |param| {
            let params = self.param(at, param).as_array();
            params.expect("as many params as slots")
        };
        SlotParams {
            key_offset: bytemuck::cast_ref(of(SlotParam::KeyOffset)),
            key_scale: of(SlotParam::KeyScale),
            value_log: of(SlotParam::ValueLog),
            value_inverse: of(SlotParam::ValueInverse),
        }
    }

    /// Sets the exponents of slots that a row does not see to minus infinity.
    #[inline(always)]
    fn hide(&self, at: usize, row: usize, exponents: &mut [f32]) {
        let mask = self.queries.mask(at, self.first + row);
        for (panel, exponents) in exponents.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            hide(exponents, (mask >> (panel * PANEL)) as u32);
        }
    }
}

/// Raises the references of the first `rows` rows to the block's largest exponents, and sets the factors that follow
/// from them. Rows beyond get arbitrary values.
#[inline(always)]
fn raise_references<const FUSED: bool>(state: &mut State, rows: usize) {
    for sixteen in 0..rows.div_ceil(PANEL) {
        raise_sixteen_references::<FUSED>(state, sixteen);
    }
}

/// Raises the references of sixteen rows, as [`raise_references`] does.
#[inline(always)]
fn raise_sixteen_references<const FUSED: bool>(state: &mut State, sixteen: usize) {
    let largest = &state.largest.as_chunks::<PANEL>().0[sixteen];
    let reference = &mut state.reference.as_chunks_mut::<PANEL>().0[sixteen];
    let rescale = &mut state.rescale.as_chunks_mut::<PANEL>().0[sixteen];
    let block_scale = &mut state.block_scale.as_chunks_mut::<PANEL>().0[sixteen];
    for i in 0..PANEL {
        let before = reference[i];
        reference[i] = math::max(before, largest[i].ceil());
        rescale[i] = power_of_two(before - reference[i]);
        let t = largest[i] - reference[i];
        let weight = math::exp2::<FUSED, 4>(&math::EXP2_NARROW, t);
        block_scale[i] = if t < LOWEST {
            0.0
        } else {
            weight * (1.0 / ONE)
        };
    }
}

/// Returns `2^exponent` for a whole number that is at most zero; zero below -126.
#[inline(always)]
fn power_of_two(exponent: f32) -> f32 {
    let bits = (math::max(-127.0, exponent) + math::ROUND).to_bits();
    f32::from_bits((bits << 23).wrapping_add(127 << 23))
}
