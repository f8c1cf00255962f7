use segpack_manifests::documents::ServeStarted;

/// One line: where, what, how much.
pub(crate) fn serve(started: &ServeStarted) -> String {
    let key = match started.needs_key {
        true => ", with a key",
        false => "",
    };
    format!(
        "serving {} at {}/v1 on {}: {} positions, at most {} requests wait{key}\n",
        started.model, started.address, started.device, started.context, started.queue
    )
}
