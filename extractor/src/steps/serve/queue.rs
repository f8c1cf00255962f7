//! Requests that wait for the model, and the one that it answers.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use segpack_formats::io::CancelToken;
use tokio::sync::mpsc::UnboundedSender;

use super::api::{ApiError, Question};
use super::event::Event;
use super::room::Held;
use crate::work::lock;

/// A request that the model is to answer.
#[derive(Debug)]
pub(super) struct Job {
    /// Counts from 0.
    pub(super) id: u64,
    pub(super) question: Question,
    /// Who waits for the answer; closed once nobody does any more. Never full: an answer is limited
    /// by the context, and the model must not wait for a client that reads slowly.
    pub(super) events: UnboundedSender<Event>,
    /// The memory that the request takes, given back when it is answered.
    pub(super) _held: Held,
}

/// Requests in the order in which they came, up to a limit.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Job>,
    running: Option<Running>,
    next_id: u64,
    /// No more requests are taken.
    is_closed: bool,
}

#[derive(Debug)]
struct Running {
    id: u64,
    /// Stops the model in the middle of a forward pass.
    cut: Arc<CancelToken>,
    /// The prompt is being prepared or run, which takes long: whoever leaves now stops it at once,
    /// at the price of the weights that are loaded. Between tokens the model looks by itself.
    is_long: bool,
}

/// In the place of a request: the model is being opened.
const OPENING: u64 = u64::MAX;

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// As many wait as may.
    Full,
    /// The server ends.
    Closed,
}

impl Queue {
    /// At most `limit` requests wait beside the one that is answered.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            limit,
        }
    }

    /// Takes a request; dropping the ticket withdraws it.
    pub(super) fn submit(
        self: &Arc<Self>,
        question: Question,
        events: UnboundedSender<Event>,
        held: Held,
    ) -> Result<Ticket, Refusal> {
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(Refusal::Closed);
        }
        // the model takes the first of them as soon as it is free
        let places = self.limit + usize::from(state.running.is_none());
        if state.waiting.len() >= places {
            return Err(Refusal::Full);
        }
        let id = state.next_id;
        state.next_id += 1;
        state.waiting.push_back(Job {
            id,
            question,
            events,
            _held: held,
        });
        drop(state);
        self.changed.notify_all();
        Ok(Ticket {
            queue: Arc::clone(self),
            id,
        })
    }

    /// The model is being opened, which `cut` stops. Until [`done`](Self::done).
    pub(super) fn opening(&self, cut: &Arc<CancelToken>) {
        let mut state = lock(&self.state);
        if state.is_closed {
            cut.cancel();
        }
        state.running = Some(Running {
            id: OPENING,
            cut: Arc::clone(cut),
            is_long: true,
        });
    }

    /// The next request; `None` once the queue is closed and empty. Until [`done`](Self::done) it
    /// can be stopped through `cut`.
    pub(super) fn take(&self, cut: &Arc<CancelToken>) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.waiting.pop_front() {
                state.running = Some(Running {
                    id: job.id,
                    cut: Arc::clone(cut),
                    is_long: true,
                });
                return Some(job);
            }
            if state.is_closed {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether what the model does now takes long: see [`Running`].
    pub(super) fn set_long(&self, is_long: bool) {
        if let Some(running) = &mut lock(&self.state).running {
            running.is_long = is_long;
        }
    }

    /// The request is answered.
    pub(super) fn done(&self) {
        lock(&self.state).running = None;
    }

    /// Takes no more requests, and tells those that wait; the opening of the model is stopped.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        for job in state.waiting.drain(..) {
            // it may have left
            let _ = job.events.send(Event::Failed(ApiError::stopping()));
        }
        // nobody waits for it
        if let Some(running) = state.running.as_ref().filter(|r| r.id == OPENING) {
            running.cut.cancel();
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).is_closed
    }

    /// Stops the request that is being answered.
    pub(super) fn cut(&self) {
        if let Some(running) = &lock(&self.state).running {
            running.cut.cancel();
        }
    }

    /// Requests that wait, and that are answered.
    pub(super) fn lengths(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.waiting.len(), usize::from(state.running.is_some()))
    }

    fn withdraw(&self, id: u64) {
        let mut state = lock(&self.state);
        state.waiting.retain(|job| job.id != id);
        if let Some(running) = &state.running
            && running.id == id
            && running.is_long
        {
            running.cut.cancel();
        }
    }
}

/// A place in the queue, and later the attention of the model, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    queue: Arc<Queue>,
    pub(super) id: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queue.withdraw(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::serve::api::{Endpoint, parse};
    use crate::steps::serve::room::Room;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    type Submitted = (Result<Ticket, Refusal>, UnboundedReceiver<Event>);

    fn submit(queue: &Arc<Queue>, room: &Arc<Room>) -> Submitted {
        let question = parse(Endpoint::Completions, br#"{"prompt": "Hi"}"#)
            .unwrap()
            .question;
        let (send, receive) = unbounded_channel();
        let held = room.hold(10).unwrap();
        (queue.submit(question, send, held), receive)
    }

    #[test]
    fn one_is_answered_while_as_many_wait_as_may() {
        let (queue, room) = (Arc::new(Queue::new(1)), Arc::new(Room::new(100)));
        let (first, _events) = submit(&queue, &room);
        let (second, _more) = submit(&queue, &room);
        assert!(
            first.is_ok() && second.is_ok(),
            "the first goes to the model"
        );
        assert_eq!(submit(&queue, &room).0.unwrap_err(), Refusal::Full);
        let cut = Arc::new(CancelToken::new());
        assert_eq!(queue.take(&cut).unwrap().id, first.as_ref().unwrap().id);
        assert_eq!(queue.lengths(), (1, 1));
        assert_eq!(submit(&queue, &room).0.unwrap_err(), Refusal::Full);
        drop(second);
        assert_eq!(queue.lengths(), (0, 1));
        assert_eq!(
            room.held(),
            0,
            "the one that was taken is dropped, the other withdrawn"
        );
    }

    #[test]
    fn only_a_long_piece_of_work_of_ones_own_is_cut() {
        let (queue, room) = (Arc::new(Queue::new(4)), Arc::new(Room::new(100)));
        let (first, _events) = submit(&queue, &room);
        let (second, _more) = submit(&queue, &room);
        let cut = Arc::new(CancelToken::new());
        let job = queue.take(&cut).unwrap();
        drop(second);
        assert!(!cut.is_cancelled(), "the other one left");
        queue.set_long(false);
        drop(first);
        assert!(
            !cut.is_cancelled(),
            "between two tokens the model looks by itself"
        );
        drop(job);
        queue.done();
        let (third, _events) = submit(&queue, &room);
        let _job = queue.take(&cut).unwrap();
        drop(third);
        assert!(cut.is_cancelled());
    }

    #[test]
    fn those_that_wait_when_it_closes_are_told() {
        let (queue, room) = (Arc::new(Queue::new(4)), Arc::new(Room::new(100)));
        let (_ticket, mut events) = submit(&queue, &room);
        queue.close();
        assert!(matches!(events.try_recv(), Ok(Event::Failed(error)) if error.status == 503));
        assert_eq!(submit(&queue, &room).0.unwrap_err(), Refusal::Closed);
        assert!(queue.take(&Arc::new(CancelToken::new())).is_none());
        assert_eq!(room.held(), 0);
    }
}
