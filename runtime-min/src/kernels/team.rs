//! Threads that stay awake from one parallel region of a forward pass to the next.
//!
//! A token takes some regions in each layer, of 10 to 100 µs. Between two of them rayon's idle
//! threads yield the processor and then sleep. On a machine where others compute, a thread that
//! yields comes back after their time slice, some milliseconds later, and the region waits for it.
//! The threads of a team wait for the next region without giving the processor away, for at most
//! [`SPIN`], and sleep only then.
//!
//! A team lives on the threads of rayon's current pool, for one [`awake`]. Its regions are those
//! that [`each`](super::parallel::each) opens on the thread that called `awake`.

use std::any::Any;
use std::cell::{RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{available_parallelism, yield_now};
use std::time::{Duration, Instant};

/// How long a thread waits awake: longer than what a layer computes on one thread between two
/// regions, shorter than what the system needs to put a thread to sleep and wake it twice.
const SPIN: Duration = Duration::from_micros(100);
/// Looks between two readings of the clock.
const LOOKS: usize = 64;
/// A region is open: threads may enter it.
const OPEN: usize = 1 << 30;
/// There will be no region any more.
const ENDED: usize = 1 << 29;
/// The number of threads that are in a region.
const INSIDE: usize = ENDED - 1;

thread_local! {
    /// The team whose regions this thread opens.
    static TEAM: RefCell<Option<Arc<Team>>> = const { RefCell::new(None) };
}

/// Runs `work` while the other threads of rayon's current pool wait for its parallel regions. They
/// run nothing else of the pool as long as it takes. With one thread, with more threads than
/// processors that this process may use, or inside another `awake`, it runs `work` alone.
pub(crate) fn awake<T>(work: impl FnOnce() -> T) -> T {
    let threads = rayon::current_num_threads();
    if threads < 2 || threads > processors() || current().is_some() {
        return work();
    }
    with_team(threads, |_| work())
}

fn with_team<T>(threads: usize, work: impl FnOnce(&Team) -> T) -> T {
    let team = Arc::new(Team::new(threads));
    let opener = rayon::current_thread_index();
    rayon::in_place_scope(|scope| {
        let member = Arc::clone(&team);
        scope.spawn_broadcast(move |_, context| {
            // a thread that waits for another pool runs what its own has for it: the opener would
            // wait for regions that it has to open itself
            if Some(context.index()) != opener {
                member.serve(context.index());
            }
        });
        let opener = Opener::new(team);
        work(&opener.0)
    })
}

/// Processors that this process may use, by its affinity and its cgroup's quota. They are looked up
/// once: that reads files, and a forward pass asks.
fn processors() -> usize {
    static PROCESSORS: LazyLock<usize> =
        LazyLock::new(|| available_parallelism().map_or(1, usize::from));
    *PROCESSORS
}

/// The team whose regions this thread opens.
pub(super) fn current() -> Option<Arc<Team>> {
    TEAM.with_borrow(Clone::clone)
}

/// Makes a team this thread's; ends it when dropped.
struct Opener(Arc<Team>);

impl Opener {
    fn new(team: Arc<Team>) -> Self {
        TEAM.set(Some(Arc::clone(&team)));
        Self(team)
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        TEAM.set(None);
        self.0.end();
    }
}

/// What a region runs for each task's number.
type Job<'j> = dyn Fn(usize) + Sync + 'j;

/// Threads, and the region that they are in.
pub(super) struct Team {
    /// [`OPEN`], [`ENDED`], and how many threads are [`INSIDE`].
    state: AtomicUsize,
    /// Of the open region. Written while none is open and nobody inside; read by threads that
    /// entered an open one.
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// Tasks of the region that nobody has taken, by thread; the last is of a thread outside the
    /// pool.
    shares: Box<[Share]>,
    /// Threads that sleep, or are about to.
    sleepers: AtomicUsize,
    door: Mutex<()>,
    bell: Condvar,
    /// What a thread of the team panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the one field that is not Sync or Send by itself. It points to a Sync value that
// outlives the region, and `state` orders its reads and writes: see there
#[expect(unsafe_code, reason = "the pointer is to a Sync value")]
unsafe impl Sync for Team {}
// SAFETY: as above
#[expect(unsafe_code, reason = "the pointer is to a Sync value")]
unsafe impl Send for Team {}

impl Team {
    fn new(threads: usize) -> Self {
        Self {
            state: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            shares: (0..=threads).map(|_| Share::default()).collect(),
            sleepers: AtomicUsize::new(0),
            door: Mutex::new(()),
            bell: Condvar::new(),
            panic: Mutex::new(None),
        }
    }

    /// Runs `job` for the numbers of all tasks, on this thread and those that are awake. Neighbours
    /// stay on one thread, in order, unless another runs dry. Called by one thread alone: the one
    /// that the team is [`current`] on.
    ///
    /// # Panics
    /// As `job` does, once no thread runs it any more.
    #[expect(unsafe_code, reason = "a job lives as long as its region, not longer")]
    pub(super) fn run(&self, tasks: usize, job: &Job<'_>) {
        let me = rayon::current_thread_index().unwrap_or(usize::MAX);
        let me = me.min(self.shares.len() - 1);
        self.share_out(tasks);
        let pointer: *const Job<'_> = job;
        // SAFETY: only the lifetime changes; nobody uses the pointer after `region` is dropped below
        let pointer: *const Job<'static> = unsafe { std::mem::transmute(pointer) };
        // SAFETY: no region is open, and the last was left by all threads before it ended: nobody
        // reads the cell. One thread opens regions, so nobody else writes
        unsafe { *self.job.get() = Some(pointer) };
        let region = Region::open(self);
        self.work(me, job);
        drop(region);
        let panic = lock(&self.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Gives each thread as many neighbours as the others.
    fn share_out(&self, tasks: usize) {
        let threads = self.shares.len() - 1;
        for (number, share) in self.shares.iter().enumerate() {
            let [from, to] = [number, number + 1].map(|n| tasks * n.min(threads) / threads);
            share.set(from, to);
        }
    }

    /// Takes tasks until there are none.
    fn work(&self, me: usize, job: &Job<'_>) {
        while let Some(task) = self.shares[me].first().or_else(|| self.steal(me)) {
            job(task);
        }
    }

    /// The last task of the next thread that has one.
    fn steal(&self, me: usize) -> Option<usize> {
        let (before, after) = self.shares.split_at(me);
        after.iter().chain(before).find_map(Share::last)
    }

    /// What a thread of the pool does until the team ends.
    fn serve(&self, me: usize) {
        while self.wait() {
            self.help(me);
        }
    }

    /// Enters the region, if it is still open, and takes part in it.
    #[expect(unsafe_code, reason = "the job lives as long as its region")]
    fn help(&self, me: usize) {
        let before = self.state.fetch_add(1, Ordering::Acquire);
        if before & OPEN != 0 {
            // SAFETY: the region was open when this thread was counted, so the job was written before
            // and is neither changed nor freed until this thread is counted out: `Region::drop` waits
            let job = unsafe { (*self.job.get()).map(|job| &*job) };
            let done = catch_unwind(AssertUnwindSafe(|| {
                job.into_iter().for_each(|job| self.work(me, job));
            }));
            if let Err(panic) = done {
                lock(&self.panic).get_or_insert(panic);
            }
        }
        self.state.fetch_sub(1, Ordering::Release);
    }

    /// Waits for an open region with tasks that nobody has taken; false once the team has ended.
    fn wait(&self) -> bool {
        let began = Instant::now();
        while began.elapsed() < SPIN {
            for _ in 0..LOOKS {
                if let Some(goes_on) = self.look() {
                    return goes_on;
                }
                std::hint::spin_loop();
            }
        }
        self.sleep()
    }

    /// Whether there is work; `None`: not yet.
    fn look(&self) -> Option<bool> {
        let state = self.state.load(Ordering::SeqCst);
        if state & ENDED != 0 {
            return Some(false);
        }
        let has_tasks = state & OPEN != 0 && self.shares.iter().any(Share::has_tasks);
        has_tasks.then_some(true)
    }

    /// As [`wait`](Self::wait), asleep. A thread is counted before it looks for the last time, and
    /// whoever changes the state looks at the count after that: one of them sees the other.
    fn sleep(&self) -> bool {
        let mut door = lock(&self.door);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let goes_on = loop {
            if let Some(goes_on) = self.look() {
                break goes_on;
            }
            door = self.bell.wait(door).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        goes_on
    }

    /// Wakes those that sleep.
    fn ring(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // a thread that counted itself holds the door until it hears the bell
            drop(lock(&self.door));
            self.bell.notify_all();
        }
    }

    fn end(&self) {
        self.state.fetch_or(ENDED, Ordering::SeqCst);
        self.ring();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open region; dropped, it is closed and left by all threads.
struct Region<'t>(&'t Team);

impl<'t> Region<'t> {
    fn open(team: &'t Team) -> Self {
        team.state.fetch_or(OPEN, Ordering::SeqCst);
        team.ring();
        Self(team)
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let began = Instant::now();
        while self.0.state.load(Ordering::Acquire) & INSIDE != 0 {
            match began.elapsed() < SPIN {
                true => std::hint::spin_loop(),
                // who is inside may have lost its processor, and may get this one
                false => yield_now(),
            }
        }
    }
}

/// The numbers of neighbouring tasks that nobody has taken: the first in the low half, the one after
/// the last in the high half. On cache lines of its own, since other threads change their shares.
#[derive(Default)]
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn set(&self, from: usize, to: usize) {
        let [from, to] = [from, to].map(|n| u64::try_from(n).unwrap_or(u64::MAX) & HALF);
        self.0.store(to << 32 | from, Ordering::Relaxed);
    }

    fn has_tasks(&self) -> bool {
        let [from, to] = halves(self.0.load(Ordering::Relaxed));
        from < to
    }

    fn first(&self) -> Option<usize> {
        self.take(|[from, to]| [from + 1, to]).map(|[from, _]| from)
    }

    fn last(&self) -> Option<usize> {
        self.take(|[from, to]| [from, to - 1]).map(|[_, to]| to - 1)
    }

    /// What it was before, if it had a task.
    fn take(&self, rest: impl Fn([u64; 2]) -> [u64; 2]) -> Option<[usize; 2]> {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |share| {
                let [from, to] = halves(share);
                let [from, to] = (from < to).then(|| rest([from, to]))?;
                Some(to << 32 | from)
            });
        let before = taken.ok().map(halves)?;
        Some(before.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }
}

const HALF: u64 = 0xFFFF_FFFF;

fn halves(share: u64) -> [u64; 2] {
    [share & HALF, share >> 32]
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    fn on<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(work)
    }

    /// How often each task of a region was run.
    fn counts(team: &Team, tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        team.run(tasks, &|task| {
            counts[task].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    /// As `awake`, however many processors there are.
    fn on_team<T: Send>(threads: usize, work: impl FnOnce(&Team) -> T + Send) -> T {
        on(threads, || with_team(threads, work))
    }

    #[test]
    fn every_task_of_every_region_is_run_once() {
        for threads in [2, 3, 5] {
            on_team(threads, |team| {
                for tasks in (0..40).chain([1000]) {
                    assert_eq!(counts(team, tasks), vec![1; tasks], "{threads}");
                }
            });
        }
    }

    #[test]
    fn threads_that_slept_are_woken() {
        let both = |team: &Team| {
            let inside = AtomicUsize::new(0);
            // each of two tasks waits for the other: one thread alone would never end
            team.run(2, &|_| {
                inside.fetch_add(1, Ordering::SeqCst);
                while inside.load(Ordering::SeqCst) < 2 {
                    yield_now();
                }
            });
        };
        on_team(2, |team| {
            for _ in 0..20 {
                sleep(SPIN * 3);
                both(team);
                both(team);
            }
        });
    }

    /// As a forward pass that waits for the threads that load its weights.
    #[test]
    fn the_opener_may_wait_for_another_pool() {
        let other = rayon::ThreadPoolBuilder::new().num_threads(1);
        let other = other.build().unwrap();
        on_team(2, |team| {
            for _ in 0..20 {
                other.install(|| sleep(SPIN));
                assert_eq!(counts(team, 9), [1; 9]);
            }
        });
    }

    #[test]
    fn a_panic_of_any_thread_reaches_the_caller_and_the_team_goes_on() {
        on_team(3, |team| {
            for wrong in 0..12 {
                let run = catch_unwind(AssertUnwindSafe(|| {
                    team.run(12, &|task| assert!(task != wrong, "task {wrong}"));
                }));
                let panic = run.unwrap_err();
                assert_eq!(
                    panic.downcast_ref::<String>(),
                    Some(&format!("task {wrong}"))
                );
                assert_eq!(counts(team, 9), [1; 9]);
            }
        });
    }

    #[test]
    fn one_thread_has_no_team_and_a_team_ends_with_its_work() {
        on(1, || awake(|| assert!(current().is_none())));
        on_team(2, |_| {
            let outer = current().unwrap();
            awake(|| assert!(Arc::ptr_eq(&outer, &current().unwrap())));
        });
        assert!(current().is_none());
        let more = processors() + 1;
        on(more, || awake(|| assert!(current().is_none())));
    }
}
