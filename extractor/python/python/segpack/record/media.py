"""Records what the official classes compute of a chat with audio, images and videos, as a trace for
`segpack validate PACK --reference`.

  record_media.py CHECKPOINT CHAT.json OUT.safetensors [--recipe readme] [--use-audio-in-video] [--fps 2]

CHAT.json is a list of messages as `segpack run --messages` takes it, paths relative to the file. Processor and thinker are
transformers' own (5.23 was tried; attention and experts eager); the recipe `readme` also needs qwen-omni-utils. Videos need
torchcodec. Of Qwen3-VL-MoE images alone, and transformers' own loading. The .json file is written last.
"""

import argparse
import copy
import json
from functools import partial
from pathlib import Path

from . import transformers as text_recorder
from . import _trace_file as trace_file
from ._trace_file import Failure

FORMAT = "qwen3-omni-media-trace-1"
RATE = 16000
KINDS = ("audio", "image", "video")
# what of them a family's traces have
TAKEN = {"qwen3_omni_moe": KINDS, "qwen3_vl_moe": ("image",)}
PICTURES = (
    ("image", "pixel_values", "image_grid_thw", "get_image_features"),
    ("video", "pixel_values_videos", "video_grid_thw", "get_video_features"),
)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the checkpoint's folder")
    parser.add_argument("chat", type=Path, help="a JSON list of messages")
    parser.add_argument("out", help="OUT.safetensors; OUT.json is written beside it")
    parser.add_argument("--recipe", choices=["transformers", "readme"], default="transformers", help="how files are loaded")
    parser.add_argument("--use-audio-in-video", action="store_true", help="the sound of videos is a part of the prompt")
    parser.add_argument("--fps", type=float, default=2.0, help="frames of a second of videos (transformers; default 2)")
    parser.add_argument("--min-pixels", type=int, help="fewest pixels of an image, and of a frame")
    parser.add_argument("--max-pixels", type=int, help="most pixels of an image, and of a frame")
    parser.add_argument("--max-new-tokens", type=int, default=12, help="greedy tokens after the prompt (default 12)")
    parser.add_argument("--dtype", choices=list(text_recorder.DTYPE_BYTES), default="float32")
    parser.add_argument("--device-map", metavar="MAP", help="auto, cpu, cuda, cuda:1 … (auto needs accelerate)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1, which is repeatable)")
    parser.add_argument("--no-digests", action="store_true", help="do not hash the checkpoint's files")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    if args.max_new_tokens < 1 or args.threads < 1 or args.fps <= 0:
        parser.error("--max-new-tokens and --threads must be at least 1, --fps above 0")
    if (args.min_pixels is None) != (args.max_pixels is None):
        parser.error("--min-pixels and --max-pixels go together")
    return args


# ---- from files to what the class takes ------------------------------------------------------------------------------


def read_chat(path):
    """The messages, and the media of all of them with whole paths."""
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read {path}: {error}", status=1) from error
    messages = messages["messages"] if isinstance(messages, dict) else messages
    whole = copy.deepcopy(messages)
    found = [part for message in whole if isinstance(message["content"], list) for part in message["content"]]
    media = []
    for part in found:
        kind = next((kind for kind in KINDS if kind in part), None)
        if kind is None:
            continue
        place = lambda name: str(path.parent / name)  # noqa: E731
        part[kind] = [place(p) for p in part[kind]] if isinstance(part[kind], list) else place(part[kind])
        media.append((kind, part[kind]))
    return messages, whole, media


def load_by_transformers(processor, media, args):
    """transformers' own loaders; frames are sampled as its video processor does it."""
    from transformers.audio_utils import load_audio
    from transformers.image_utils import load_image_as_tensor

    images, videos, audios, slots = [], [], [], []
    sampler = processor.video_processor
    keywords = {n: getattr(sampler, n, None) for n in ("temporal_patch_size", "min_frames", "max_frames", "num_frames")}
    for kind, path in media:
        if kind == "audio":
            audios.append(load_audio(path, sampling_rate=RATE, backend="soundfile"))
            slots.append(None)
        elif kind == "image":
            images.append(load_image_as_tensor(path))
        elif isinstance(path, list):
            import torch

            videos.append(torch.stack([load_image_as_tensor(frame) for frame in path]))
        else:
            sample = partial(sampler.sample_frames, fps=args.fps, **keywords)
            videos.append(sampler.fetch_videos(path, sample_indices_fn=sample)[0])
            if args.use_audio_in_video:
                audios.append(load_audio(path, sampling_rate=RATE, backend="torchcodec"))
                slots.append(len(videos) - 1)
    return images, videos, audios, slots, {"fps": args.fps, "do_sample_frames": False}


def load_by_readme(whole, media, args):
    """qwen_omni_utils.process_mm_info, as the model card shows it."""
    from qwen_omni_utils import process_mm_info

    audios, images, videos = process_mm_info(whole, use_audio_in_video=args.use_audio_in_video)
    counted, slots = 0, []
    for kind, _ in media:
        if kind == "audio":
            slots.append(None)
        elif kind == "video":
            if args.use_audio_in_video:
                slots.append(counted)
            counted += 1
    return images or [], videos or [], audios or [], slots, {}


def process(processor, whole, media, args):
    text = processor.apply_chat_template(whole, add_generation_prompt=True, tokenize=False)
    text = text if isinstance(text, str) else text[0]
    if args.recipe == "transformers":
        images, videos, audios, slots, video_keywords = load_by_transformers(processor, media, args)
    else:
        images, videos, audios, slots, video_keywords = load_by_readme(whole, media, args)
    extra = {"videos_kwargs": video_keywords if videos else {}, "images_kwargs": {}}
    if args.min_pixels is not None:
        size = {"shortest_edge": args.min_pixels, "longest_edge": args.max_pixels}
        extra["videos_kwargs"]["size"] = extra["images_kwargs"]["size"] = size
    if args.use_audio_in_video:
        extra |= {"load_audio_from_video": True, "audio_from_video_indices": slots}
    given = {"images": images or None, "videos": videos or None} | ({"audio": audios} if audios else {})
    inputs = processor(text=text, **given, return_tensors="pt", padding=True, **extra)
    return text, inputs, audios


def features(inputs, audios, torch):
    """What the encoders get, under the names of a trace."""
    import numpy as np

    kept = {"mm.input_ids": inputs["input_ids"][0]}
    for number, clip in enumerate(audios):
        kept[f"mm.audio.samples.{number}"] = torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))
    if "input_features" in inputs:
        lengths = torch.as_tensor(inputs["feature_attention_mask"]).sum(1)
        clips = [clip[:, : int(n)] for clip, n in zip(inputs["input_features"], lengths)]
        kept |= {"mm.audio.lengths": lengths.long(), "mm.audio.features": torch.cat(clips, 1).float()}
    for kind, pixels, grid, _ in PICTURES:
        if pixels in inputs:
            kept[f"mm.{kind}.pixels"] = inputs[pixels].float()
            kept[f"mm.{kind}.grid"] = torch.as_tensor(inputs[grid]).long()
    if "video_second_per_grid" in inputs and "pixel_values_videos" in inputs:
        kept["mm.video.second_per_grid"] = torch.as_tensor(inputs["video_second_per_grid"]).float().reshape(-1)
    return kept


# ---- the model -------------------------------------------------------------------------------------------------------


class Grab:
    """Keeps what goes into the first and out of every block while it is open."""

    def __init__(self, kind, first, blocks):
        self.kept, self.handles = {}, [blocks[0].register_forward_pre_hook(self.enters(f"mm.{kind}.{first}"), with_kwargs=True)]
        for number, block in enumerate(blocks):
            self.handles.append(block.register_forward_hook(self.leaves(f"mm.{kind}.layer.{number}")))

    def enters(self, name):
        def hook(module, args, kwargs):
            self.kept[name] = (args[0] if args else kwargs["hidden_states"]).detach()

        return hook

    def leaves(self, name):
        def hook(module, args, output):
            self.kept[name] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    def close(self):
        for handle in self.handles:
            handle.remove()
        return self.kept


def together(rows, torch):
    """Rows of all pictures: some versions give them picture by picture."""
    return rows if torch.is_tensor(rows) else torch.cat(list(rows))


def encoders(model, inputs, cast, torch):
    """The stages of both encoders."""
    named = dict(model.named_modules())
    kept = {}
    if "input_features" in inputs:
        tower = next(module for name, module in named.items() if name.endswith("audio_tower"))
        grab = Grab("audio", "conv", tower.layers)
        rows = model.get_audio_features(cast["input_features"], cast["feature_attention_mask"], return_dict=True)
        kept |= grab.close()
        kept["mm.audio.out"] = rows.last_hidden_state if hasattr(rows, "last_hidden_state") else rows
    tower = next(module for name, module in named.items() if name.endswith("visual"))
    for kind, pixels, grid, function in PICTURES:
        if pixels not in inputs:
            continue
        grab = Grab(kind, "embed", tower.blocks)
        rows = getattr(model, function)(cast[pixels], inputs[grid], return_dict=True)
        kept |= grab.close()
        kept[f"mm.{kind}.out"] = together(rows.pooler_output, torch)
        for number, added in enumerate(rows.deepstack_features):
            kept[f"mm.{kind}.deepstack.{number}"] = together(added, torch)
    return kept


def decoder(model, inputs, cast, args, torch):
    """One pass over the prompt with everything kept, then greedy generation by the class's own loop."""
    of_family = {"use_audio_in_video": args.use_audio_in_video} if model.config.model_type.startswith("qwen3_omni") else {}
    recorder = text_recorder.Recorder(model, "full", torch)
    grab, kept = {}, {}
    embeds = recorder.layers[0].register_forward_pre_hook(
        lambda module, given, named: grab.__setitem__("embeds", (given[0] if given else named["hidden_states"]).detach()),
        with_kwargs=True,
    )
    places = recorder.text.rotary_emb.register_forward_pre_hook(
        lambda module, given, named: grab.__setitem__("places", named.get("position_ids", given[1] if len(given) > 1 else None)),
        with_kwargs=True,
    )
    recorder.is_on = True
    output = model(**cast, **of_family, use_cache=False)
    recorder.is_on = False
    embeds.remove()
    places.remove()
    taken = recorder.take()
    recorder.add_choices(taken)
    positions = grab["places"].float()
    kept["mm.position_ids"] = positions.reshape(-1, positions.shape[-1])[-3:] if positions.ndim == 3 else positions.expand(3, -1)
    # the class keeps it, under another name in each version; it is this
    kept["mm.rope_delta"] = (positions.max() + 1 - positions.shape[-1]).reshape(1)
    kept["mm.embeds"], kept["mm.logits"], kept["mm.norm"] = grab["embeds"], output.logits[0], taken["norm"]
    margins = []
    for number in range(len(recorder.layers)):
        for part in ("hidden", "router_logits", "topk_ids"):
            if f"layer.{number}.{part}" in taken:
                kept[f"mm.layer.{number}.{part}"] = taken[f"layer.{number}.{part}"]
        logits = taken.get(f"layer.{number}.router_logits")
        if logits is not None and logits.shape[-1] > recorder.text.config.num_experts_per_tok:
            best = logits.float().topk(recorder.text.config.num_experts_per_tok + 1).values
            margins.append((best[:, -2] - best[:, -1]).min().item())
    tokens = inputs["input_ids"].shape[1]
    keywords = {"do_sample": False, "num_beams": 1, "max_new_tokens": args.max_new_tokens, "eos_token_id": None, "pad_token_id": 0}
    generated = model.generate(**cast, **of_family, **keywords)
    generated = generated if torch.is_tensor(generated) else generated.sequences
    kept["mm.gen.ids"] = generated[0, tokens:]
    return kept, min(margins, default=None)


def write(path, tensors, document, dtype):
    """Both files, whole or not at all; the .json file last."""
    from safetensors.torch import save_file

    description = path.with_suffix(".json")
    partial_files = [p.with_name(f"{p.name}.partial") for p in (path, description)]
    said = json.dumps({"dtype": dtype, "recipe": document["conversation"]["recipe"]})
    try:
        save_file(tensors, str(partial_files[0]), metadata={"format": f"{FORMAT} {said}"})
        partial_files[1].write_text(trace_file.readable({"format": FORMAT, "trace": path.name, **document}), encoding="utf-8")
        partial_files[0].replace(path)
        partial_files[1].replace(description)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error}", status=1) from error
    finally:
        for file in partial_files:
            file.unlink(missing_ok=True)


def main():
    args = arguments()
    path = trace_file.output_path(args.out, args.overwrite)
    config = text_recorder.read_config(args.checkpoint)
    taken = TAKEN.get(config["model_type"])
    if taken is None:
        raise Failure(f"{args.checkpoint}: model_type {config['model_type']!r} takes text alone")
    if args.recipe == "readme" and config["model_type"] != "qwen3_omni_moe":
        raise Failure(f"--recipe readme is of Qwen3-Omni, not of {config['model_type']}", status=2)
    messages, whole, media = read_chat(args.chat)
    if other := [kind for kind, _ in media if kind not in taken]:
        raise Failure(f"{args.chat}: {other[0]} in it; of {config['model_type']} only these are recorded: {', '.join(taken)}")
    if not media:
        raise Failure(f"{args.chat}: no audio, image or video in it; record_transformers.py records text")
    major = text_recorder.check_version()
    import torch
    import transformers
    from transformers import AutoProcessor

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    processor = AutoProcessor.from_pretrained(args.checkpoint, local_files_only=True)
    text, inputs, audios = process(processor, whole, media, args)
    model = text_recorder.load_model(args, config, major, torch)
    device = model.get_input_embeddings().weight.device
    inputs = {name: torch.as_tensor(value).to(device) for name, value in inputs.items()}
    # the seconds of a grid stay in float32, as the class wants them
    is_cast = lambda name, value: value.is_floating_point() and name != "video_second_per_grid"  # noqa: E731
    dtype = getattr(torch, args.dtype)
    cast = {name: value.to(dtype) if is_cast(name, value) else value for name, value in inputs.items()}
    tensors = features(inputs, audios, torch)
    with torch.no_grad():
        tensors |= encoders(model, inputs, cast, torch)
        decoded, margin = decoder(model, inputs, cast, args, torch)
    tensors |= decoded
    flat = lambda t: t.reshape(-1, t.shape[-1]) if t.ndim > 2 else t  # noqa: E731
    tensors = {name: flat(value.detach()).cpu().contiguous().clone() for name, value in tensors.items()}
    document = {
        "conversation": {
            "recipe": args.recipe, "level": "full", "messages": messages, "use_audio_in_video": args.use_audio_in_video, "fps": args.fps,
        },
        "prompt": text,
        "tokens": int(inputs["input_ids"].shape[1]),
        "generated": tensors["mm.gen.ids"].tolist(),
        "min_router_margin": margin,
        "settings": {"dtype": args.dtype, "device": str(device), "threads": args.threads, "attn": "eager", "experts": "eager", "level": "full"},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **trace_file.origin_digests(args.checkpoint, not args.no_digests),
    }  # fmt: skip
    write(path, tensors, document, args.dtype)
    print(f"{path}: {len(tensors)} tensors, {document['tokens']} tokens, generated {document['generated']}")


if __name__ == "__main__":
    trace_file.run(main)
