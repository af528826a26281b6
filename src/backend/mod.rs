//! The compute seam: one name per operation, everywhere.
//!
//! A [`Backend`] owns two kinds of memory: *weights*, added once at load and named by ids, and one
//! *arena* of `f32`, allocated once, in which activations and the ring cache live and which callers
//! name by [`Region`]. No operation hands out a pointer, so the same calls can drive memory that the
//! host cannot see. Operations run in the order they are called; results must not depend on the
//! number of threads, nor a row's bits on how many rows share the call.
//!
//! The plain loops in [`cpu`] define each operation; [`parity`] checks any other implementation against them.

pub mod cpu;
pub mod kv_cache;
pub mod narrow;
pub mod parity;

use arrayvec::ArrayVec;
use kv_cache::{KvCache, KvForm, KvLayout};
use narrow::NarrowWeights;
use std::ops::Range;

/// Most ring segments one attention call may read: two per topic, for [`MAX_TOPICS`] topics, and
/// two for the queries' own chunk.
pub const MAX_SEGMENTS: usize = 2 * MAX_TOPICS + 2;

/// Most topics one configuration may name.
pub const MAX_TOPICS: usize = 32;

/// A run of `f32` elements in the backend's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl Region {
    /// Elements `offset .. offset + len` of this region.
    ///
    /// # Panics
    /// When they do not lie inside it: a programming error, never a consequence of input data.
    pub fn part(self, offset: usize, len: usize) -> Region {
        assert!(
            offset + len <= self.len,
            "region part {offset}+{len} outside {}",
            self.len
        );
        Region {
            start: self.start + offset,
            len,
        }
    }

    /// Rows `first .. first + rows` of a row-major matrix of `width` columns.
    pub fn rows(self, first: usize, rows: usize, width: usize) -> Region {
        self.part(first * width, rows * width)
    }

    /// Returns its place in the arena, in elements.
    pub fn range(self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// A linear layer's weights inside a backend, by a number that the backend chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearId(pub usize);

/// A vector or table of parameters (norm weights, biases, embeddings) inside a backend, by a number that it chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableId(pub usize);

/// A layer norm's scale and shift.
#[derive(Clone, Copy, Debug)]
pub struct NormIds {
    /// Scale, `[d]`.
    pub weight: TableId,
    /// Shift, `[d]`.
    pub bias: TableId,
}

/// What a linear layer does with its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = x W^T + b`
    Store,
    /// `out = gelu(x W^T + b)`
    Gelu,
    /// `out += x W^T + b`
    Add,
}

/// Sizes of a grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`. Query head `h` reads key/value head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Dimensions per head.
    pub head_dim: usize,
}

impl HeadShape {
    /// Columns of a query matrix.
    pub fn q_width(self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of a key or value matrix.
    pub fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Returns the layout of keys and values in a cache of this form.
    pub fn kv_layout(self, form: KvForm) -> KvLayout {
        KvLayout {
            form,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }
}

/// Which keys of a segment a query may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// All of them: the query's own chunk.
    All,
    /// Those with `0 <= t_query - t_key <= window_ns`.
    Window {
        /// Longest time distance that is still seen.
        window_ns: i64,
    },
    /// Those that have left the window: `t_query - t_key > window_ns`.
    Older {
        /// The window they have left.
        window_ns: i64,
    },
}

/// A contiguous run of keys and values, with the time of each.
#[derive(Clone, Copy, Debug)]
pub struct KvSegment<'a> {
    /// Where they lie; keys already rotated.
    pub cache: KvCache,
    /// Slot of the first key and value.
    pub first_slot: usize,
    /// Capture times, `[n]`, of that slot and the ones that follow.
    pub time_ns: &'a [i64],
    /// Mask.
    pub visibility: Visibility,
}

/// The segments one attention call reads, oldest first.
pub type Segments<'a> = ArrayVec<KvSegment<'a>, MAX_SEGMENTS>;

/// The operations of the model. Shapes are row-major; with 0 `rows` nothing happens.
///
/// Argument regions of one call must not overlap unless the operation says `in_place`; sizes that do
/// not fit are programming errors and panic.
pub trait Backend {
    /// Describes the backend and the path it takes, for people.
    fn name(&self) -> String;

    /// Allocates the arena, zeroed. Called once, after every buffer is laid out and before any other use of a region.
    fn allocate(&mut self, arena_len: usize);

    /// Adds a linear layer's weights `[out_dim, in_dim]` and bias `[out_dim]`, packed as the backend likes.
    fn add_linear(
        &mut self,
        weight: &[f32],
        bias: Option<&[f32]>,
        in_dim: usize,
        out_dim: usize,
    ) -> LinearId;

    /// Adds a linear layer whose weights have fewer bits; a backend that computes in that
    /// precision takes them unchanged.
    fn add_narrow_linear(
        &mut self,
        weight: NarrowWeights<'_>,
        bias: Option<&[f32]>,
        in_dim: usize,
        out_dim: usize,
    ) -> LinearId {
        self.add_linear(&weight.widened(in_dim), bias, in_dim, out_dim)
    }

    /// Adds a table `[rows, width]` of parameters.
    fn add_table(&mut self, values: &[f32], width: usize) -> TableId;

    /// Returns the bytes of weights held.
    fn weight_bytes(&self) -> usize;

    /// Copies host values into the arena.
    fn upload(&mut self, dst: Region, src: &[f32]);

    /// Copies a region back to the host; waits for everything that writes it.
    fn download(&self, src: Region, dst: &mut [f32]);

    /// Copies a region's bytes from the host, as [`Backend::download_bytes`] gave them.
    fn upload_bytes(&mut self, dst: Region, src: &[u8]);

    /// Copies a region's bytes to the host, four per element, whatever they represent.
    fn download_bytes(&self, src: Region, dst: &mut [u8]);

    /// `dst = src`.
    fn copy_into(&mut self, src: Region, dst: Region);

    /// `dst = 0`.
    fn zero(&mut self, dst: Region);

    /// Returns the form in which this backend caches keys and values.
    fn kv_form(&self) -> KvForm;

    /// Caches keys, `[rows, kv_width]`, in the slots from `first_slot` on. Whatever else their blocks hold must be
    /// finite, since attention multiplies what it does not see by zero.
    fn cache_keys_into(&mut self, keys: Region, rows: usize, cache: KvCache, first_slot: usize);

    /// Caches values, as [`Backend::cache_keys_into`] does keys.
    fn cache_values_into(&mut self, values: Region, rows: usize, cache: KvCache, first_slot: usize);

    /// `out[c] = mean over slots of key[slot][c]`, of cached keys; `slots` is not empty.
    fn mean_cached_keys_into(&mut self, cache: KvCache, slots: Range<usize>, out: Region);

    /// `out[r] (=, += or = gelu) x[r] W^T + b` for `rows` rows. GELU by the tanh approximation
    /// (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    fn linear_into(
        &mut self,
        x: Region,
        rows: usize,
        layer: LinearId,
        epilogue: Epilogue,
        out: Region,
    );

    /// Runs several layers on the same rows with [`Epilogue::Store`], each into its own region, so that a backend can
    /// prepare the rows once for all of them.
    fn linears_into(&mut self, x: Region, rows: usize, layers: &[(LinearId, Region)]) {
        for &(layer, out) in layers {
            self.linear_into(x, rows, layer, Epilogue::Store, out);
        }
    }

    /// A feed-forward part: `out[r] (=, += or = gelu) gelu(x[r] W1^T + b1) W2^T + b2` for `rows` rows, with `W1` and `b1`
    /// those of `layers[0]`. `hidden` has room for the first layer's results; what it holds afterwards is up to the
    /// backend, and so is how precise they are between the layers.
    fn feed_forward_into(
        &mut self,
        x: Region,
        rows: usize,
        layers: [LinearId; 2],
        hidden: Region,
        epilogue: Epilogue,
        out: Region,
    ) {
        self.linear_into(x, rows, layers[0], Epilogue::Gelu, hidden);
        self.linear_into(hidden, rows, layers[1], epilogue, out);
    }

    /// Layer normalisation over each row (Ba et al. 2016, arXiv:1607.06450), eps 1e-5.
    fn layer_norm_into(&mut self, x: Region, rows: usize, norm: NormIds, out: Region);

    /// Rotates head dimensions in place; `table` is `[rows, head_dim]`: per row the cosines, then the sines, of
    /// [`crate::model::rotary`]'s pairs.
    fn rotary_in_place(
        &mut self,
        x: Region,
        rows: usize,
        heads: usize,
        head_dim: usize,
        table: Region,
    );

    /// `out[r] += table[index[r]]`.
    fn add_rows_in_place(&mut self, out: Region, index: &[u32], table: TableId);

    /// `out[r] = table[index[r]]`.
    fn gather_rows_into(&mut self, index: &[u32], table: TableId, out: Region);

    /// Windowed grouped-query attention over the segments with one sink logit per head: one softmax over all visible
    /// keys and a sink that adds to the denominator only. `q`: `[rows, q_width]`, rotated. `q_time_ns`: `[rows]`.
    /// `sink`: `[heads]`. `out`: `[rows, q_width]`. A query that sees no key gives zeros.
    fn attention_into(
        &mut self,
        q: Region,
        q_time_ns: &[i64],
        shape: HeadShape,
        segments: &Segments<'_>,
        sink: TableId,
        out: Region,
    );

    /// `out[c] = mean over rows of x[r][c]`.
    fn mean_rows_into(&mut self, x: Region, rows: usize, out: Region);

    /// `out[0] = sigmoid(weight . [x; extra] + bias[0])`, `weight` of length `x.len + extra.len()`.
    fn gate_into(&mut self, x: Region, extra: &[f32], weight: TableId, bias: TableId, out: Region);

    /// Pools `taps` rows into one by a strided convolution of each column:
    /// `out[g][c] = sum over i of kernel[i][c] * x[g * taps + i][c]`. `kernel`: `[taps, width]`.
    /// `x`: `[n * taps, width]`. `out`: `[n, width]`.
    fn compress_into(&mut self, x: Region, kernel: TableId, out: Region);

    /// Scores each summary key's relevance to a chunk of queries: `out[b] = m . summaries[b]`, where `m` is, for each
    /// key/value head, the mean of `q` over the rows and the group's heads. `q`: `[rows, q_width]`, rotated, `rows` at
    /// least 1. `summaries`: `[n, kv_width]`. `out`: `[n]`. A score's bits do not depend on `n`.
    fn block_scores_into(
        &mut self,
        q: Region,
        rows: usize,
        shape: HeadShape,
        summaries: Region,
        out: Region,
    );

    /// `out[r] = x[r] / temperature[0] + bias`.
    fn scale_shift_into(
        &mut self,
        x: Region,
        rows: usize,
        temperature: TableId,
        bias: TableId,
        out: Region,
    );

    /// `dst += scale[0] * src`.
    fn scaled_add_in_place(&mut self, dst: Region, scale: Region, src: Region);
}
