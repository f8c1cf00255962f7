//! Tasks on rayon's current pool.

use rayon::prelude::*;
use segpack_formats::io::CancelToken;

/// Runs every task, or skips those that are left once `stop` is requested: the caller asks it
/// afterwards. Neighbours stay on one thread, in order, unless another thread runs dry. With
/// `parallel` false, or one thread, all run on the caller's.
pub(super) fn each<T: Send>(
    tasks: Vec<T>,
    parallel: bool,
    stop: &CancelToken,
    run: impl Fn(T) + Send + Sync,
) {
    if parallel && tasks.len() > 1 && rayon::current_num_threads() > 1 {
        tasks
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| unless(stop, task, &run));
    } else {
        tasks.into_iter().for_each(|task| unless(stop, task, &run));
    }
}

fn unless<T>(stop: &CancelToken, task: T, run: &impl Fn(T)) {
    if !stop.is_cancelled() {
        run(task);
    }
}
