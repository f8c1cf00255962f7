//! Tasks on rayon's current pool, or on the team of its threads that is awake.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use segpack_formats::io::CancelToken;

use super::team;

/// Runs every task, or skips those that are left once `stop` is requested: the caller asks it
/// afterwards. Neighbours stay on one thread, in order, unless another thread runs dry. With
/// `parallel` false, or one thread, all run on the caller's.
pub(super) fn each<T: Send>(
    tasks: Vec<T>,
    parallel: bool,
    stop: &CancelToken,
    run: impl Fn(T) + Send + Sync,
) {
    if !parallel || tasks.len() < 2 || rayon::current_num_threads() < 2 {
        tasks.into_iter().for_each(|task| unless(stop, task, &run));
    } else if let Some(team) = team::current() {
        let tasks: Vec<_> = tasks
            .into_iter()
            .map(|task| Mutex::new(Some(task)))
            .collect();
        team.run(tasks.len(), &|number| {
            let task = tasks[number].lock();
            let task = task.unwrap_or_else(PoisonError::into_inner).take();
            task.into_iter().for_each(|task| unless(stop, task, &run));
        });
    } else {
        tasks
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| unless(stop, task, &run));
    }
}

fn unless<T>(stop: &CancelToken, task: T, run: &impl Fn(T)) {
    if !stop.is_cancelled() {
        run(task);
    }
}
