//! Bicubic resizing with antialias, bit for bit as the official processor does it.
//!
//! Along each axis an output value is a weighted sum: output i has its centre at (i + 0.5) × scale,
//! scale is input / output, and the cubic kernel (a = −0.5) is stretched by max(scale, 1). The
//! horizontal pass is first, and each pass rounds and clips to 8 bits.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::size::check_size;
use super::{ImageError, Picture, RgbPicture};

/// Fraction bits of Pillow's weights.
const PILLOW_BITS: u32 = 22;

/// As torchvision resizes 8-bit pictures: weights of 16 bits, as many of them fraction bits as the
/// largest weight of the axis leaves.
///
/// # Errors
/// `TooLarge` where the result would have more pixels than are allowed.
pub fn resize_official(
    picture: &RgbPicture,
    width: usize,
    height: usize,
) -> Result<RgbPicture, ImageError> {
    check_size(width as u64, height as u64)?;
    check_size(width as u64, picture.height as u64)?;
    // both axes in one call would be resized in the other order
    let mut resized = None;
    if picture.width != width {
        resized = Some(one_axis(picture, width, picture.height)?);
    }
    let wide = resized.as_ref().unwrap_or(picture);
    if wide.height != height {
        resized = Some(one_axis(wide, width, height)?);
    }
    Ok(resized.unwrap_or_else(|| picture.clone()))
}

fn one_axis(picture: &RgbPicture, width: usize, height: usize) -> Result<RgbPicture, ImageError> {
    let too_large = || ImageError::TooLarge {
        width: width.max(picture.width) as u64,
        height: height.max(picture.height) as u64,
    };
    let side = |side: usize| u32::try_from(side).map_err(|_| too_large());
    let (columns, rows) = (side(picture.width)?, side(picture.height)?);
    let (columns_now, rows_now) = (side(width)?, side(height)?);
    let mut values = vec![0; 3 * width * height];
    // of this type alone: `resize` would bring the code of all pixel types into the program
    let source = TypedImageRef::<U8x3>::from_buffer(columns, rows, &picture.values);
    let source = source.map_err(|_| too_large())?;
    let target = TypedImage::<U8x3>::from_buffer(columns_now, rows_now, &mut values);
    let mut target = target.map_err(|_| too_large())?;
    let algorithm = ResizeAlg::Convolution(FilterType::CatmullRom);
    let options = ResizeOptions::new().resize_alg(algorithm).use_alpha(false);
    Resizer::new()
        .resize_typed(&source, &mut target, &options)
        .map_err(|_| too_large())?;
    Ok(Picture {
        width,
        height,
        values,
    })
}

/// As Pillow resizes: weights with 22 fraction bits. Differs by one level, rarely two.
pub fn resize_pillow(picture: &RgbPicture, width: usize, height: usize) -> RgbPicture {
    let wide = match picture.width == width {
        true => picture.clone(),
        false => horizontal(picture, width),
    };
    match wide.height == height {
        true => wide,
        false => vertical(&wide, height),
    }
}

/// As torchvision resizes pictures of floats: no rounding, no clipping.
pub fn resize_float(picture: &Picture<f32>, width: usize, height: usize) -> Picture<f32> {
    let wide = match picture.width == width {
        true => picture.clone(),
        false => horizontal_float(picture, width),
    };
    match wide.height == height {
        true => wide,
        false => vertical_float(&wide, height),
    }
}

/// The inputs that an output is a sum of.
struct Taps<W> {
    first: usize,
    weights: Vec<W>,
}

macro_rules! taps {
    ($name:ident, $real:ty, $doc:literal) => {
        #[doc = $doc]
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "places in a picture, truncated as the official code does"
        )]
        fn $name(input: usize, output: usize) -> Vec<Taps<$real>> {
            // the cubic kernel, as Keys has it, with a = -0.5
            fn kernel(x: $real) -> $real {
                const A: $real = -0.5;
                match x.abs() {
                    x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                    x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                    _ => 0.0,
                }
            }

            let scale = input as $real / output as $real;
            let stretch = scale.max(1.0);
            let support = 2.0 * stretch;
            let tap = |i: usize| {
                let centre = scale * (i as $real + 0.5);
                let first = (centre - support + 0.5).max(0.0) as usize;
                let end = ((centre + support + 0.5) as usize).min(input);
                let weight = |j| kernel((j as $real - centre + 0.5) / stretch);
                let mut weights: Vec<$real> = (first..end).map(weight).collect();
                let sum: $real = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
                Taps { first, weights }
            };
            (0..output).map(tap).collect()
        }
    };
}

taps!(taps_f64, f64, "Weights as Pillow computes them.");
taps!(taps_f32, f32, "Weights as torch computes them for floats.");

/// Weights with [`PILLOW_BITS`] fraction bits, rounded away from zero.
#[expect(clippy::cast_possible_truncation, reason = "weights are below 2")]
fn fixed_taps(input: usize, output: usize) -> Vec<Taps<i32>> {
    let one = f64::from(1u32 << PILLOW_BITS);
    let fixed = |weight: f64| (weight * one + 0.5f64.copysign(weight)) as i32;
    let taps = taps_f64(input, output).into_iter();
    taps.map(|taps| Taps {
        first: taps.first,
        weights: taps.weights.into_iter().map(fixed).collect(),
    })
    .collect()
}

/// A sum as 8 bits. |weights| of 1.3 times 255 are below 2^31.
#[expect(clippy::cast_sign_loss, reason = "clipped before")]
fn to_8_bits(sum: i32) -> u8 {
    ((sum + (1 << (PILLOW_BITS - 1))) >> PILLOW_BITS).clamp(0, 255) as u8
}

fn horizontal(picture: &RgbPicture, width: usize) -> RgbPicture {
    let taps = fixed_taps(picture.width, width);
    let mut values = Vec::with_capacity(width * picture.height * 3);
    for row in picture.values.chunks_exact(picture.width * 3) {
        for tap in &taps {
            let pixels = row[tap.first * 3..].chunks_exact(3);
            let mut sums = [0i32; 3];
            for (pixel, weight) in pixels.zip(&tap.weights) {
                let products = pixel.iter().map(|v| i32::from(*v) * weight);
                sums.iter_mut().zip(products).for_each(|(sum, p)| *sum += p);
            }
            values.extend(sums.map(to_8_bits));
        }
    }
    Picture {
        width,
        height: picture.height,
        values,
    }
}

fn vertical(picture: &RgbPicture, height: usize) -> RgbPicture {
    let stride = picture.width * 3;
    let mut values = Vec::with_capacity(stride * height);
    let mut sums = vec![0i32; stride];
    for tap in fixed_taps(picture.height, height) {
        sums.fill(0);
        let rows = picture.values[tap.first * stride..].chunks_exact(stride);
        for (row, weight) in rows.zip(&tap.weights) {
            let products = row.iter().map(|v| i32::from(*v) * weight);
            sums.iter_mut().zip(products).for_each(|(sum, p)| *sum += p);
        }
        values.extend(sums.iter().map(|sum| to_8_bits(*sum)));
    }
    Picture {
        width: picture.width,
        height,
        values,
    }
}

fn horizontal_float(picture: &Picture<f32>, width: usize) -> Picture<f32> {
    let taps = taps_f32(picture.width, width);
    let mut values = Vec::with_capacity(width * picture.height * 3);
    for row in picture.values.chunks_exact(picture.width * 3) {
        for tap in &taps {
            let pixels = row[tap.first * 3..].chunks_exact(3);
            let mut sums = [0f32; 3];
            for (pixel, weight) in pixels.zip(&tap.weights) {
                let products = pixel.iter().map(|v| v * weight);
                sums.iter_mut().zip(products).for_each(|(sum, p)| *sum += p);
            }
            values.extend(sums);
        }
    }
    Picture {
        width,
        height: picture.height,
        values,
    }
}

fn vertical_float(picture: &Picture<f32>, height: usize) -> Picture<f32> {
    let stride = picture.width * 3;
    let mut values = Vec::with_capacity(stride * height);
    for tap in taps_f32(picture.height, height) {
        let start = values.len();
        values.resize(start + stride, 0f32);
        let sums = &mut values[start..];
        let rows = picture.values[tap.first * stride..].chunks_exact(stride);
        for (row, weight) in rows.zip(&tap.weights) {
            let products = row.iter().map(|v| v * weight);
            sums.iter_mut().zip(products).for_each(|(sum, p)| *sum += p);
        }
    }
    Picture {
        width: picture.width,
        height,
        values,
    }
}
