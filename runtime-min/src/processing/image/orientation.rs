//! Which side of a picture is up.

use ::image::DynamicImage;
use ::image::metadata::Orientation;

use super::{Picture, RgbPicture};

/// The picture as EXIF says it has to be held.
pub(super) fn oriented(picture: RgbPicture, orientation: Orientation) -> RgbPicture {
    if orientation == Orientation::NoTransforms {
        return picture;
    }
    let (width, height) = (picture.width, picture.height);
    let sides = (u32::try_from(width), u32::try_from(height));
    let (Ok(columns), Ok(rows)) = sides else {
        return picture;
    };
    let Some(buffer) = ::image::RgbImage::from_raw(columns, rows, picture.values) else {
        // a picture has the values of its pixels: this does not happen
        return Picture {
            width,
            height,
            values: vec![0; width * height * 3],
        };
    };
    let mut image = DynamicImage::ImageRgb8(buffer);
    image.apply_orientation(orientation);
    Picture {
        width: image.width() as usize,
        height: image.height() as usize,
        values: image.into_bytes(),
    }
}
