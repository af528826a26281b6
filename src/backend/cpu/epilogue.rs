//! What is done with the results of products in bf16 and 8 bits on their way to the output.

#[cfg(target_arch = "x86_64")]
use super::f32x16::{F32x16, LANES};
use super::math;
use crate::backend::Epilogue;

/// Writes a row's results in a panel; `out` is short where the output ends within the panel.
#[inline(always)]
pub(super) fn write_panel<const N: usize>(mut y: [f32; N], epilogue: Epilogue, out: &mut [f32]) {
    if epilogue == Epilogue::Gelu {
        for y in &mut y {
            *y = math::gelu(&math::EXP2_NARROW, *y);
        }
    }
    match out.as_mut_array::<N>() {
        // All panels but the last are whole vectors.
        Some(out) if epilogue == Epilogue::Add => (0..N).for_each(|i| out[i] += y[i]),
        Some(out) => *out = y,
        None if epilogue == Epilogue::Add => out.iter_mut().zip(&y).for_each(|(o, y)| *o += y),
        None => out.copy_from_slice(&y[..out.len()]),
    }
}

/// As [`write_panel`], from a vector, to at most sixteen places.
///
/// # Safety
/// The processor has `S`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn write_vector<S: F32x16>(mut y: S, epilogue: Epilogue, out: &mut [f32]) {
    let place = out.as_mut_ptr();
    // Most panels are whole, and masks cost.
    let whole = out.len() >= LANES;
    // SAFETY: touches only the places that `out` has; the caller guarantees the rest.
    unsafe {
        match epilogue {
            Epilogue::Store => (),
            Epilogue::Gelu => y = y.gelu(&math::EXP2_NARROW),
            Epilogue::Add if whole => y = S::load(place).add(y),
            Epilogue::Add => y = S::load_first(place, out.len()).add(y),
        }
        if whole {
            y.store(place);
        } else {
            y.store_first(place, out.len());
        }
    }
}
