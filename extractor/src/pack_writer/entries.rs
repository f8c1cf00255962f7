//! What the manifest lists of a pack that was written.

use segpack_formats::pack::WrittenPack;
use segpack_manifests::documents::{
    Layout, Manifest, PackEntry, PlannedPack, SegmentEntry, TensorEntry,
};

/// Lists a pack as it was planned and written.
pub(crate) fn add_pack(manifest: &mut Manifest, pack: &PlannedPack, written: &WrittenPack) {
    manifest.packs.push(PackEntry {
        path: pack.path.clone(),
        component: pack.component,
        data_offset: pack.data_offset,
        length: written.length,
        sha256: written.sha256,
    });
    let mut digests = written.tensors.iter();
    for (segment, stored) in pack.segments.iter().zip(&written.segments) {
        manifest.segments.push(SegmentEntry {
            id: segment.id.clone(),
            pack: pack.path.clone(),
            offset: stored.offset,
            stored_length: stored.stored_length,
            raw_length: stored.raw_length,
            codec: stored.codec,
            layout: Layout::RowMajor,
            blake3: stored.blake3,
        });
        let mut offset = 0;
        for (tensor, sha256) in segment.tensors.iter().zip(digests.by_ref()) {
            manifest.tensors.push(TensorEntry {
                name: tensor.name.clone(),
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                segment: segment.id.clone(),
                offset,
                length: tensor.source.length,
                sha256: *sha256,
                component: pack.component,
                role: tensor.role,
                part: tensor.part,
                layer: tensor.layer,
                expert: tensor.expert,
                source: tensor.source.clone(),
            });
            offset += tensor.source.length;
        }
    }
}
