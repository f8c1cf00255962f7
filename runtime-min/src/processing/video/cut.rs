//! Files that are shorter than they say, where FFmpeg says nothing of it: it plays what is there.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of a packet of an MPEG transport stream, and what each begins with.
const PACKET: usize = 188;
const SYNC: u8 = 0x47;
/// Packets whose first byte says that a file is such a stream.
const PACKETS: usize = 4;

/// What is wrong with the length of a file: `None` where nothing is, or its kind has no length.
///
/// AVI counts the bytes of its lists, of which a long file has several; a transport stream is whole
/// packets. One that is cut between two packets cannot be told from a shorter one.
pub(super) fn found(path: &Path) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut head = vec![0; PACKET * (PACKETS - 1) + 1];
    let read = read_up_to(&mut file, &mut head)?;
    head.truncate(read);
    if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"AVI ") {
        return cut_list(&mut file, length);
    }
    let mut packets = head.chunks(PACKET).map(|packet| packet[0]);
    let is_stream = read > 0 && packets.clone().count() == PACKETS && packets.all(|b| b == SYNC);
    let rest = length % PACKET as u64;
    let message = format!("[mpegts] the last packet has {rest} of {PACKET} bytes");
    Ok((is_stream && rest != 0).then_some(message))
}

/// Goes from list to list of an AVI file.
fn cut_list(file: &mut File, length: u64) -> io::Result<Option<String>> {
    let mut at = 0;
    while at + 8 <= length {
        let mut head = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut head)?;
        let size = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        // who writes into a pipe does not know it
        if !head.starts_with(b"RIFF") || size == 0 || size == u64::from(u32::MAX) {
            return Ok(None);
        }
        let end = at + 8 + size;
        if end > length {
            return Ok(Some(format!(
                "[avi] {length} bytes, its header counts {end}"
            )));
        }
        at = end + size % 2;
    }
    Ok(None)
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..])? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("film");
        std::fs::write(&path, bytes).unwrap();
        found(&path).unwrap()
    }

    #[test]
    fn lists_of_an_avi_file_are_whole() {
        let list = |kind: &[u8], body: usize| {
            let size = u32::try_from(body + 4).unwrap().to_le_bytes();
            [b"RIFF", &size[..], kind, &vec![1; body]].concat()
        };
        let two = [list(b"AVI ", 100), list(b"AVIX", 60)].concat();
        assert_eq!(of(&two), None);
        assert_eq!(of(&[&two[..], b"tail"].concat()), None);
        for cut in [two.len() - 1, 112 + 20, 111, 50] {
            let seen = of(&two[..cut]).unwrap();
            assert!(seen.starts_with(&format!("[avi] {cut} bytes")), "{seen}");
        }
        let mut piped = two[..80].to_vec();
        piped[4..8].fill(0xff);
        assert_eq!(of(&piped), None);
    }

    #[test]
    fn a_transport_stream_is_whole_packets() {
        let mut stream = vec![7; 188 * 6];
        stream
            .iter_mut()
            .step_by(188)
            .for_each(|first| *first = SYNC);
        assert_eq!(of(&stream), None);
        let seen = of(&stream[..188 * 5 + 20]).unwrap();
        assert_eq!(seen, "[mpegts] the last packet has 20 of 188 bytes");
        // bytes that are no such stream have any length
        assert_eq!(of(&vec![7; 1000]), None);
        assert_eq!(of(&[]), None);
    }
}
