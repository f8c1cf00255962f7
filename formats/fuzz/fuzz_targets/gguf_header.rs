#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    segpack_fuzz::bodies::gguf_header(data);
});
