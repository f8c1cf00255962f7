//! A queue of tasks and a few threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::steps::StepError;

/// Threads beyond this only cost memory: sixteen digest faster than any drive delivers.
const MOST_DEFAULT_JOBS: usize = 16;

/// One thread for each core, up to sixteen.
pub fn default_jobs() -> usize {
    thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MOST_DEFAULT_JOBS)
}

/// What all threads of a step may take together, in bytes: the process then stays below 256 MiB.
const THREADS_MEMORY: u64 = 200 << 20;

/// As many of `jobs` as have room beside each other when each takes this many bytes; at least one.
pub fn jobs_within_memory(jobs: usize, bytes_each: u64) -> usize {
    jobs.min(usize::try_from(THREADS_MEMORY / bytes_each.max(1)).unwrap_or(usize::MAX))
        .max(1)
}

/// Runs every task on one of `jobs` threads, taking them in order, each thread with a state of its
/// own.
///
/// # Errors
/// The first error; tasks that have not begun then never do.
pub fn run_tasks<T: Sync, S>(
    jobs: usize,
    tasks: &[T],
    state: impl Fn() -> Result<S, StepError> + Sync,
    run: impl Fn(&mut S, &T) -> Result<(), StepError> + Sync,
) -> Result<(), StepError> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let fail = |e: StepError| {
        next.store(tasks.len(), Ordering::Relaxed);
        let mut first = failed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // an interruption is what other threads see of the first error, or of Ctrl-C
        if first.as_ref().is_none_or(StepError::is_interrupted) {
            *first = Some(e);
        }
    };
    let work = || {
        let mut state = match state() {
            Ok(state) => state,
            Err(e) => return fail(e),
        };
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = run(&mut state, task) {
                return fail(e);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..jobs.clamp(1, tasks.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    match failed
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
    {
        Some(e) => Err(e),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_as_many_as_have_room() {
        assert_eq!(
            [0, 1, 1 << 20, 40 << 20, u64::MAX].map(|each| jobs_within_memory(8, each)),
            [8, 8, 8, 5, 1]
        );
        assert_eq!(jobs_within_memory(1024, 6 << 20), 33);
    }

    #[test]
    fn every_task_runs_once_and_the_first_error_stops_the_rest() {
        let done = AtomicUsize::new(0);
        let tasks: Vec<usize> = (0..100).collect();
        let count = |(): &mut (), _: &usize| {
            done.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        run_tasks(8, &tasks, || Ok(()), count).unwrap();
        assert_eq!(done.load(Ordering::Relaxed), 100);

        let fail = |(): &mut (), task: &usize| {
            done.fetch_add(1, Ordering::Relaxed);
            if *task == 3 {
                Err(StepError::Input("three".to_owned()))
            } else {
                Ok(())
            }
        };
        assert_eq!(
            run_tasks(1, &tasks, || Ok(()), fail)
                .unwrap_err()
                .to_string(),
            "three"
        );
        assert_eq!(done.load(Ordering::Relaxed), 104);
        run_tasks(4, &[] as &[usize], || Ok(()), fail).unwrap();
    }
}
