//! Which frames of a video are taken. Frames are chosen by their number in the order they are shown
//! in, never by time.

use super::VideoError;

/// Frames of a video for which nothing is asked: beyond this the prompt would have more tokens than
/// any model takes.
pub const MAX_SAMPLED: usize = 10_000;

/// How many frames are asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Frames of a second (`fps`). `None`: each frame, or [`Sampling::frames`] of them.
    pub fps: Option<f64>,
    /// Frames of the video (`num_frames`; `nframes` by the model card); before [`Sampling::fps`].
    pub frames: Option<usize>,
    /// Fewest frames that `fps` may come to.
    pub min_frames: usize,
    /// Most frames that `fps` may come to.
    pub max_frames: usize,
    /// Seconds between which frames are taken (`video_start`, `video_end`); only by the model card.
    pub seconds: [Option<f64>; 2],
}

impl Sampling {
    fn check(&self) -> Result<(), VideoError> {
        let requested = match (self.frames, self.fps) {
            (Some(frames), _) if frames == 0 || frames > MAX_SAMPLED => format!("{frames} frames"),
            (None, Some(fps)) if !(fps.is_finite() && fps > 0.0) => {
                format!("{fps} frames of a second")
            }
            _ => return Ok(()),
        };
        Err(VideoError::Nothing { requested })
    }
}

/// Numbers of frames as transformers chooses them (`Qwen2VLVideoProcessor.sample_frames`).
///
/// Where rounding gives transformers one number too many, which is that of no frame (it then
/// fails), the list ends before. A video of one frame, by which transformers divides by zero, is
/// that frame.
///
/// # Errors
/// `TooFew` where more frames are asked for than there are, `TooManySampled` where nothing is asked
/// for and there are more than [`MAX_SAMPLED`].
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as Python computes it: numbers of frames are far below 2^53"
)]
pub fn sample_by_processor(
    total: usize,
    native_fps: f64,
    sampling: &Sampling,
    group: usize,
) -> Result<Vec<usize>, VideoError> {
    sampling.check()?;
    let whole = |frames: f64| (frames / group as f64).floor() as usize * group;
    let frames = match (sampling.frames, sampling.fps) {
        (Some(frames), _) => (frames as f64 / group as f64).round_ties_even() as usize * group,
        (None, Some(fps)) => {
            let most = whole(sampling.max_frames.min(total) as f64);
            let requested = total as f64 / native_fps * fps;
            let bounded = requested.max(sampling.min_frames as f64);
            whole(bounded.min(most as f64).min(total as f64))
        }
        (None, None) if total > MAX_SAMPLED => return Err(VideoError::TooManySampled { total }),
        (None, None) => return Ok((0..total).collect()),
    };
    if frames > total {
        return Err(VideoError::TooFew {
            total,
            wanted: frames,
        });
    }
    if frames == 0 {
        return Ok(vec![0]);
    }
    let step = total as f64 / frames as f64;
    let index = |i: usize| (i as f64 * step) as f32 as usize;
    Ok((0..frames).map(index).map(|i| i.min(total - 1)).collect())
}

/// Numbers of frames as `qwen_omni_utils` chooses them (`smart_nframes`, then `linspace`): the last
/// frame is among them.
///
/// # Errors
/// `TooFew` where there are fewer than two frames, or fewer than are asked for.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as Python computes it: numbers of frames are far below 2^53"
)]
pub fn sample_by_model_card(
    total: usize,
    native_fps: f64,
    sampling: &Sampling,
) -> Result<Vec<usize>, VideoError> {
    const GROUP: usize = 2;
    /// Frames of a second, where nothing is asked for.
    const FPS: f64 = 2.0;

    sampling.check()?;
    let (start, end) = excerpt(total, native_fps, sampling.seconds)?;
    let total = end - start + 1;
    let whole = |frames: f64| (frames / GROUP as f64).floor() as usize * GROUP;
    let frames = match sampling.frames {
        Some(frames) => (frames as f64 / GROUP as f64).round_ties_even() as usize * GROUP,
        None => {
            let least = sampling.min_frames.next_multiple_of(GROUP) as f64;
            let most = whole(sampling.max_frames.min(total) as f64) as f64;
            let requested = total as f64 / native_fps * sampling.fps.unwrap_or(FPS);
            whole(requested.max(least).min(most).min(total as f64))
        }
    };
    if frames < GROUP || frames > total {
        return Err(VideoError::TooFew {
            total,
            wanted: frames.max(GROUP),
        });
    }

    // linspace counts from both ends, in float32
    let (first, last) = (start as f32, end as f32);
    let step = (last - first) / (frames - 1) as f32;
    let place = |i: usize| match i < frames / 2 {
        true => first + step * i as f32,
        false => last - step * (frames - 1 - i) as f32,
    };
    let index = |i: usize| place(i).round_ties_even() as usize;
    Ok((0..frames)
        .map(index)
        .map(|i| i.clamp(start, end))
        .collect())
}

/// The first and the last frame between two seconds (`calculate_video_frame_range`).
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as Python computes it: numbers of frames are far below 2^53"
)]
fn excerpt(
    total: usize,
    native_fps: f64,
    [start, end]: [Option<f64>; 2],
) -> Result<(usize, usize), VideoError> {
    let last = total.saturating_sub(1);
    if start.is_none() && end.is_none() {
        return Ok((0, last));
    }
    let duration = total as f64 / native_fps;
    let frame = |second: f64| second.clamp(0.0, duration) * native_fps;
    let first = start.map_or(0, |second| frame(second).ceil() as usize);
    let end_frame = end.map_or(last, |second| (frame(second).floor() as usize).min(last));
    match first < end_frame {
        true => Ok((first, end_frame)),
        false => Err(VideoError::Excerpt {
            start: start.unwrap_or(0.0),
            end: end.unwrap_or(duration),
            duration,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(fps: f64) -> Sampling {
        Sampling {
            fps: Some(fps),
            frames: None,
            min_frames: 4,
            max_frames: 768,
            seconds: [None; 2],
        }
    }

    /// Numbers that `qwen_omni_utils` 0.0.9 gives.
    #[test]
    fn frames_between_two_seconds_are_those_of_the_package() {
        let of = |total, native, seconds| {
            let sampling = Sampling {
                seconds,
                ..requested(2.0)
            };
            sample_by_model_card(total, native, &sampling)
        };
        assert_eq!(of(75, 25.0, [Some(1.0), None]).unwrap(), [25, 41, 58, 74]);
        assert_eq!(of(75, 25.0, [None, Some(2.0)]).unwrap(), [0, 17, 33, 50]);
        assert_eq!(
            of(75, 25.0, [Some(0.5), Some(2.5)]).unwrap(),
            [13, 29, 46, 62]
        );
        assert_eq!(
            of(75, 25.0, [Some(-1.0), Some(9.0)]).unwrap(),
            [0, 15, 30, 44, 59, 74]
        );
        for seconds in [
            [Some(2.0), Some(1.0)],
            [Some(9.0), None],
            [Some(1.0), Some(1.03)],
        ] {
            let error = of(75, 25.0, seconds).unwrap_err();
            assert!(matches!(error, VideoError::Excerpt { .. }), "{error}");
        }
    }

    #[test]
    fn frames_are_those_of_the_official_rules() {
        let by_processor =
            |n, native, fps| sample_by_processor(n, native, &requested(fps), 2).unwrap();
        assert_eq!(by_processor(75, 25.0, 2.0), [0, 12, 25, 37, 50, 62]);
        assert_eq!(by_processor(23, 10.0, 2.0), [0, 5, 11, 17]);
        assert_eq!(by_processor(78, 29.97002997, 2.0), [0, 19, 39, 58]);
        assert_eq!(by_processor(1, 25.0, 2.0), [0]);
        assert_eq!(by_processor(2, 25.0, 2.0), [0, 1]);
        assert_eq!(by_processor(3, 25.0, 2.0), [0, 1]);
        assert_eq!(by_processor(1_000_000, 25.0, 2.0).len(), 768);
        let by_model_card = sample_by_model_card(75, 25.0, &requested(2.0)).unwrap();
        assert_eq!(by_model_card, [0, 15, 30, 44, 59, 74]);
    }

    /// Where transformers makes one number more than it wants, which is that of no frame.
    #[test]
    fn no_number_is_beyond_the_last_frame() {
        for (total, native) in [(230, 30.0), (237, 30.0), (382, 25.0), (75, 10.0)] {
            let indices = sample_by_processor(total, native, &requested(2.0), 2).unwrap();
            assert_eq!(indices.len() % 2, 0);
            assert!(indices.iter().all(|i| *i < total), "{total}: {indices:?}");
        }
    }

    #[test]
    fn more_frames_than_there_are_is_an_error() {
        let mut sampling = requested(2.0);
        sampling.frames = Some(8);
        assert!(sample_by_processor(7, 25.0, &sampling, 2).is_err());
        assert!(sample_by_model_card(7, 25.0, &sampling).is_err());
        assert!(sample_by_model_card(1, 25.0, &requested(2.0)).is_err());
        for (frames, fps) in [
            (Some(0), 2.0),
            (Some(MAX_SAMPLED + 1), 2.0),
            (None, 0.0),
            (None, -1.0),
            (None, f64::NAN),
        ] {
            let nothing = Sampling {
                frames,
                ..requested(fps)
            };
            for error in [
                sample_by_processor(75, 25.0, &nothing, 2),
                sample_by_model_card(75, 25.0, &nothing),
            ] {
                assert!(
                    matches!(error, Err(VideoError::Nothing { .. })),
                    "{frames:?} {fps}"
                );
            }
        }
        sampling.frames = Some(5);
        assert_eq!(sample_by_processor(7, 25.0, &sampling, 2).unwrap().len(), 4);
        sampling = Sampling {
            fps: None,
            frames: None,
            ..sampling
        };
        assert_eq!(sample_by_processor(7, 25.0, &sampling, 2).unwrap().len(), 7);
        assert!(sample_by_processor(MAX_SAMPLED + 1, 25.0, &sampling, 2).is_err());
    }
}
