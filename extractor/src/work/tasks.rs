//! A queue of tasks and a few threads.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use segpack_formats::FormatError;

use super::shared::{into_inner, lock};

/// Threads beyond this only cost memory: sixteen digest faster than any drive delivers.
const MAX_DEFAULT_JOBS: usize = 16;

/// One thread for each core, up to sixteen.
pub fn default_jobs() -> usize {
    thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_DEFAULT_JOBS)
}

/// What all threads of a step may take together, in bytes: the process then stays below 256 MiB.
const THREADS_MEMORY: u64 = 200 << 20;

/// As many of `jobs` as fit beside each other when each takes this many bytes; at least one.
pub(crate) fn jobs_within_memory(jobs: usize, bytes_each: u64) -> usize {
    jobs.min(usize::try_from(THREADS_MEMORY / bytes_each.max(1)).unwrap_or(usize::MAX))
        .max(1)
}

/// An error of a task.
pub(crate) trait TaskError: From<FormatError> + Send {
    /// Whether it only says that somebody stopped the task: then the error of another task, if
    /// there is one, says why.
    fn is_stop(&self) -> bool;
}

impl TaskError for FormatError {
    fn is_stop(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

/// Runs every task on one of `jobs` threads, taking them in order, each thread with a state of its
/// own.
///
/// # Errors
/// The first error, `WorkerDied` where a task panicked; tasks that have not begun then never do.
pub(crate) fn run_tasks<T: Sync, S, E: TaskError>(
    jobs: usize,
    tasks: &[T],
    state: impl Fn() -> Result<S, E> + Sync,
    run: impl Fn(&mut S, &T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let queue = Queue {
        next: AtomicUsize::new(0),
        tasks,
        failed: Mutex::new(None),
    };
    thread::scope(|scope| {
        for _ in 1..jobs.clamp(1, tasks.len().max(1)) {
            let thread = thread::Builder::new();
            // where there are no more threads, those that there are do it all
            if thread
                .spawn_scoped(scope, || queue.work(&state, &run))
                .is_err()
            {
                break;
            }
        }
        queue.work(&state, &run);
    });
    match into_inner(queue.failed) {
        Some(e) => Err(e),
        None => Ok(()),
    }
}

/// Tasks, and the error that ended them.
struct Queue<'a, T, E> {
    next: AtomicUsize,
    tasks: &'a [T],
    failed: Mutex<Option<E>>,
}

impl<T, E: TaskError> Queue<'_, T, E> {
    /// Takes tasks until there are no more, one fails, or one panics.
    fn work<S>(
        &self,
        state: &impl Fn() -> Result<S, E>,
        run: &impl Fn(&mut S, &T) -> Result<(), E>,
    ) {
        // the state and the shared data of a task that panicked are not used again
        let worked = panic::catch_unwind(AssertUnwindSafe(|| self.run_all(state, run)));
        match worked {
            Ok(Ok(())) => {}
            Ok(Err(e)) => self.fail(e),
            Err(_) => self.fail(FormatError::WorkerDied { thread: "worker" }.into()),
        }
    }

    fn run_all<S>(
        &self,
        state: &impl Fn() -> Result<S, E>,
        run: &impl Fn(&mut S, &T) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut state = state()?;
        while let Some(task) = self.tasks.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            run(&mut state, task)?;
        }
        Ok(())
    }

    /// Keeps the first error, but for one that only says that somebody stopped the task.
    fn fail(&self, error: E) {
        self.next.store(self.tasks.len(), Ordering::Relaxed);
        let mut first = lock(&self.failed);
        if first.as_ref().is_none_or(TaskError::is_stop) {
            *first = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_as_many_as_fit() {
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
            Ok::<_, FormatError>(())
        };
        run_tasks(8, &tasks, || Ok(()), count).unwrap();
        assert_eq!(done.load(Ordering::Relaxed), 100);

        let fail = |(): &mut (), task: &usize| {
            done.fetch_add(1, Ordering::Relaxed);
            if *task == 3 {
                Err(FormatError::malformed("three".as_ref(), "3"))
            } else {
                Ok(())
            }
        };
        assert_eq!(
            run_tasks(1, &tasks, || Ok(()), fail)
                .unwrap_err()
                .to_string(),
            "three: 3"
        );
        assert_eq!(done.load(Ordering::Relaxed), 104);
        run_tasks(4, &[] as &[usize], || Ok(()), fail).unwrap();
    }

    fn panic_at_three((): &mut (), task: &usize) -> Result<(), FormatError> {
        assert_ne!(*task, 3, "a test of what a panic comes to");
        Ok(())
    }

    #[test]
    fn a_panic_of_any_thread_is_an_error_of_its_own() {
        for jobs in [1, 4] {
            let tasks: Vec<usize> = (0..100).collect();
            let died = run_tasks(jobs, &tasks, || Ok(()), panic_at_three).unwrap_err();
            assert!(
                matches!(died, FormatError::WorkerDied { thread: "worker" }),
                "{died:?}"
            );
        }
    }

    #[test]
    fn a_real_error_counts_more_than_a_stop() {
        let tasks = [0, 1];
        let begun = std::sync::Barrier::new(2);
        let run = |(): &mut (), task: &usize| {
            begun.wait();
            if *task == 0 {
                return Err(FormatError::Interrupted);
            }
            thread::sleep(std::time::Duration::from_millis(50));
            Err(FormatError::malformed("file".as_ref(), "is damaged"))
        };
        let error = run_tasks(2, &tasks, || Ok(()), run).unwrap_err();
        assert!(matches!(error, FormatError::Malformed { .. }), "{error:?}");
    }
}
