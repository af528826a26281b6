//! The images of a tick, decoded side by side: with several cameras, or several replays together, they take longest of all
//! that comes before the network.

use super::input::InputError;
use crate::backend::MAX_TOPICS;
use crate::compute::for_each_part;
use crate::decode::{ImageView, PixelFormat};
use crate::frontend::camera::CameraFrontEnd;
use crate::model::layout::MAX_LANES;
use crate::sample::Sample;
use arrayvec::ArrayVec;

/// The images of one tick, or of several runs' ticks that share a step: one a camera.
pub type Pictures<'a> = ArrayVec<Picture<'a>, { MAX_LANES * MAX_TOPICS }>;

/// One image on its way through its camera's front end.
pub struct Picture<'a> {
    pub(super) camera: &'a mut CameraFrontEnd,
    /// For bytes that must be put together or decoded from base64.
    pub(super) scratch: &'a mut Vec<u8>,
    pub(super) image: Image<'a>,
    /// Where the outcome goes; the patches stay with the front end.
    pub(super) outcome: &'a mut Option<Result<(), InputError>>,
}

/// Where an image comes from.
#[derive(Clone, Copy)]
pub(super) enum Image<'a> {
    Message(&'a Sample),
    Jpeg(&'a [u8]),
}

/// Decodes images on all threads there are.
pub fn decode(pictures: &mut [Picture<'_>]) {
    for_each_part(pictures, |picture| {
        *picture.outcome = Some(process(picture.camera, picture.scratch, picture.image));
    });
}

/// Turns an image into its front end's patches.
pub(super) fn process(
    camera: &mut CameraFrontEnd,
    scratch: &mut Vec<u8>,
    image: Image<'_>,
) -> Result<(), InputError> {
    let view = match image {
        Image::Jpeg(data) => ImageView::compressed(PixelFormat::Jpeg, data),
        Image::Message(sample) => match &sample.format {
            Ok(decoder) => decoder.image(&sample.payload, scratch)?,
            Err(reason) => return Err(InputError::Unbound(reason.to_string())),
        },
    };
    camera.process(&view)?;
    Ok(())
}
