//! The model: specification and weights, and the network that runs on a [`crate::backend::Backend`].
//!
//! In flow order: [`adapter`] turns features into tokens, [`encoder`] relates a topic's tokens to its window (and to
//! what has left it, where there is a long context), [`fusion`] gathers all modalities, [`heads`] and [`caption`] read
//! the result. [`network`] is one run's context and results, advanced tick by tick. `shared` is what several runs that
//! step together share; [`layout`] says where their rows lie. [`forward`] is the same mathematics over a whole sequence
//! at once: naive, the reference for `step`. [`weights`] come from a file, whose matrices may be [`narrow`].

pub mod adapter;
pub mod caption;
pub mod encoder;
pub mod forward;
pub mod fusion;
pub mod heads;
pub mod init;
pub mod layout;
pub mod moments;
pub mod narrow;
pub mod network;
pub mod rotary;
pub mod spec;
pub mod stage;
pub mod weights;

mod digest;
mod layers;
mod long_context;
mod shared;
mod sizes;
mod step_outputs;
mod tensor;
