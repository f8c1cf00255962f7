//! What a template may use: the checkpoint, and so its template, can come from anybody.
//!
//! Steps, the text that comes out, the size of the template and of padding are bounded, and deep
//! nesting finds a deep stack. What a template's own values take is bounded by `budget`.

use std::io;
use std::panic::resume_unwind;
use std::thread;

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Bytes of a template's source. Published ones have up to some 20 kB.
pub(super) const LONGEST_SOURCE: usize = 256 << 10;
/// Bytes of a rendered text.
pub(super) const LONGEST_TEXT: usize = 64 << 20;
/// Lists in lists that `tojson` writes; Python ends at about as many.
pub(super) const DEEPEST: usize = 500;
/// Instructions of minijinja. Qwen's templates take a few hundred for each message.
const STEPS: u64 = 500_000;
const STEPS_PER_MESSAGE: u64 = 5_000;
/// Columns of padding.
const WIDEST: u64 = 100_000;
/// Bytes of address space. minijinja's compiler and values recurse once for each operator and each
/// nesting, which the bounds above limit; memory is taken only as deep as it goes.
const STACK: usize = 1 << 30;

/// Instructions for so many messages.
pub(super) fn steps(messages: usize) -> u64 {
    STEPS + STEPS_PER_MESSAGE.saturating_mul(messages as u64)
}

/// Calls `work` on a thread with a deep stack.
///
/// # Errors
/// Where the system does not give one.
pub(super) fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Replaces the filters that pad by a number of the template's choice: minijinja fills any width,
/// or panics.
pub(super) fn bound_filters(environment: &mut Environment<'_>) {
    environment.add_filter(
        "batch",
        bounded(Value::from_function(minijinja::filters::batch)),
    );
    environment.add_filter(
        "slice",
        bounded(Value::from_function(minijinja::filters::slice)),
    );
}

fn bounded(
    filter: Value,
) -> impl Fn(&mut State<'_, '_>, Rest<ValueOrKwargs>) -> Result<Value, Error> + Send + Sync + 'static
{
    move |state, args| {
        let args = args.into_values();
        args.iter().skip(1).try_for_each(check_width)?;
        filter.call(state, &args)
    }
}

pub(super) fn check_width(argument: &Value) -> Result<(), Error> {
    if let Ok(named) = Kwargs::try_from(argument.clone()) {
        return named
            .args()
            .try_for_each(|name| check_width(&named.peek::<Value>(name)?));
    }
    let fits = || u64::try_from(argument.clone()).is_ok_and(|width| width <= WIDEST);
    if argument.kind() == ValueKind::Number && !fits() {
        Err(too_wide())
    } else {
        Ok(())
    }
}

/// A width of a format is a number in its text.
pub(super) fn check_format(format: &str) -> Result<(), Error> {
    let digits = format
        .split(|c: char| !c.is_ascii_digit())
        .map(str::len)
        .max()
        .unwrap_or(0);
    if digits >= WIDEST.to_string().len() {
        Err(too_wide())
    } else {
        Ok(())
    }
}

fn too_wide() -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("padding and batches end at {WIDEST}"),
    )
}
