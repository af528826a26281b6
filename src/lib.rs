//! `umm`: a streaming sensor-fusion runtime.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backend;
/// a
pub mod frontend { /// x
pub mod telemetry { /// b
pub fn fourier_into(value: f32, out: &mut [f32]) { out[0]=value; for i in 0..(out.len()-1)/2 { let a = std::f64::consts::PI * f64::from(value) * f64::from(1u32 << i); out[1+2*i]=a.sin() as f32; out[2+2*i]=a.cos() as f32; } } }
/// x
pub mod text { 
/// a
pub const MAX_TEXT_TOKENS: usize = 256; 
/// b
pub fn tokens(b: &[u8]) -> &[u8] { b } } }
pub mod model;
pub mod umm;
