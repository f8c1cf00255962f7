"""Records what the official classes say and how it sounds, as a trace for `segpack validate PACK --reference`.

  record_speech.py CHECKPOINT OUT.safetensors --chat "Name three rivers."                        the whole model answers and speaks
  record_speech.py CHECKPOINT OUT.safetensors --chat "Say it." --answer "The Rhine flows north."  a given answer is spoken
  record_speech.py CHECKPOINT OUT.safetensors --codes CODES.npy                                  given codes become sound

A given answer needs no thinker: of text the talker gets word embeddings alone, so that only they, talker and code2wav are loaded
(7.7 GB of the real checkpoint in bfloat16 instead of 70). Everything is greedy, the residual codes too. The arithmetic and the
orchestration are those of Qwen3OmniMoeForConditionalGeneration.generate; hooks look and change nothing. The .json file is written last.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

from . import _prompts as prompt_input
from . import transformers as text_recorder
from . import _trace_file as trace_file
from ._trace_file import Failure

SPEECH_FORMAT = "qwen3-omni-speech-trace-1"
WAVE_FORMAT = "qwen3-omni-wav-trace-1"
WORDS = "thinker.model.embed_tokens.weight"
# as generate() decodes: frames of a chunk, and frames before it that are decoded once more
CHUNK, CONTEXT = 300, 25


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the checkpoint's folder")
    parser.add_argument("out", help="OUT.safetensors; OUT.json is written beside it")
    prompt_input.add_arguments(parser)
    parser.add_argument("--answer", action="append", metavar="TEXT", help="what is spoken; once for each prompt, in their order")
    parser.add_argument("--codes", type=Path, action="append", metavar="FILE.npy", help="codes [groups, frames] instead of prompts; repeatable")
    parser.add_argument("--speaker", default="Ethan", help="one of the checkpoint's speakers (default Ethan)")
    parser.add_argument("--text-tokens", type=int, default=32, help="tokens of an answer that is not given (default 32)")
    parser.add_argument("--talker-tokens", type=int, default=64, help="frames of sound at most (default 64)")
    parser.add_argument("--repetition-penalty", type=float, default=1.05, help="of the talker's first codes (default 1.05)")
    parser.add_argument("--dtype", choices=list(text_recorder.DTYPE_BYTES), default="float32")
    parser.add_argument("--device-map", metavar="MAP", help="of the whole model: auto, cpu, cuda … (auto needs accelerate)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1, which is repeatable)")
    parser.add_argument("--no-digests", action="store_true", help="do not hash the checkpoint's files")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    if min(args.text_tokens, args.talker_tokens, args.threads) < 1:
        parser.error("--text-tokens, --talker-tokens and --threads must be at least 1")
    return args


# ---- the model -------------------------------------------------------------------------------------------------------


def load_part(name, prefix, args, config, torch):
    """One of the model's classes from its part of the checkpoint. from_pretrained loads the whole model or nothing: it knows how
    experts are stacked for that class alone."""
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as official

    dtype, usual = getattr(torch, args.dtype), torch.get_default_dtype()
    kind = getattr(official, name)
    torch.set_default_dtype(dtype)
    try:
        model = kind._from_config(config, attn_implementation="eager", experts_implementation="eager")
    finally:
        torch.set_default_dtype(usual)
    for module in model.modules():  # these stay in float32, as from_pretrained leaves them
        if hasattr(module, "inv_freq"):
            module.inv_freq = type(module)(module.config).inv_freq
    stored = {key: value.to(dtype) for key, value in read_part(args.checkpoint, prefix)}
    wanted = {key: stored.pop(key) if key in stored else stacked(key, stored, torch) for key in model.state_dict()}
    if stored:
        raise Failure(f"{args.checkpoint}: {name} does not know {len(stored)} tensors: {', '.join(sorted(stored)[:5])}")
    model.load_state_dict(wanted, strict=True)
    return model.eval()


def read_part(checkpoint, prefix):
    """The tensors whose names begin so, without that."""
    from safetensors import safe_open

    for path in text_recorder.shards(checkpoint):
        with safe_open(path, framework="pt") as shard:
            for key in shard.keys():
                if key.startswith(prefix):
                    yield key.removeprefix(prefix), shard.get_tensor(key)


def stacked(key, stored, torch):
    """All experts of a layer as the class has them, out of those of the checkpoint: gate above up."""
    place, _, matrix = key.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(matrix)
    if parts is None or not place.endswith(".experts"):
        raise Failure(f"the checkpoint has no tensor for {key}")
    experts = []
    while f"{place}.{len(experts)}.{parts[0]}.weight" in stored:
        names = [f"{place}.{len(experts)}.{part}.weight" for part in parts]
        experts.append(torch.cat([stored.pop(name) for name in names]))
    if not experts:
        raise Failure(f"the checkpoint has no experts for {key}")
    return torch.stack(experts)


def load_words(args, torch):
    """The thinker's word embeddings."""
    for _, weight in read_part(args.checkpoint, WORDS):
        return torch.nn.Embedding.from_pretrained(weight.to(getattr(torch, args.dtype)))
    raise Failure(f"{args.checkpoint}: has no tensor {WORDS}")


def without_thinker(args, config, torch):
    """The official model with a stand-in for the thinker, which gives answers that it is told."""
    from transformers import Qwen3OmniMoeForConditionalGeneration as Official

    class GivenThinker(torch.nn.Module):
        def __init__(self, words):
            super().__init__()
            self.words, self.answer = words, None

        @property
        def device(self):
            return self.words.weight.device

        def get_input_embeddings(self):
            return self.words

        def generate(self, input_ids, **_):
            sequences = torch.cat([input_ids, self.answer], dim=1)
            # the last token is never fed back; layers beside the embedding matter where there are media alone
            states = self.words(sequences[:, :-1])
            layers = config.talker_config.accept_hidden_layer + 1
            return SimpleNamespace(sequences=sequences, hidden_states=[(states,) * layers])

    class Speaking(Official):
        def __init__(self, thinker, talker, code2wav):
            torch.nn.Module.__init__(self)
            self.config, self.has_talker = config, True
            self.thinker, self.talker, self.code2wav = thinker, talker, code2wav

    talker = load_part("Qwen3OmniMoeTalkerForConditionalGeneration", "talker.", args, config.talker_config, torch)
    code2wav = load_part("Qwen3OmniMoeCode2Wav", "code2wav.", args, config.code2wav_config, torch)
    return Speaking(GivenThinker(load_words(args, torch)), talker, code2wav)


def load_whole(args, torch):
    import transformers

    settings = {"dtype": getattr(torch, args.dtype), "attn_implementation": "eager", "local_files_only": True}
    settings |= {"experts_implementation": "eager"} | ({"device_map": args.device_map} if args.device_map else {})
    kind = transformers.Qwen3OmniMoeForConditionalGeneration
    model, info = kind.from_pretrained(args.checkpoint, output_loading_info=True, **settings)
    text_recorder.check_loaded(args.checkpoint, info)
    return model.eval()


# ---- looking on ------------------------------------------------------------------------------------------------------


def rows(values):
    """Of a batch of one: [rows, width]."""
    values = values.detach().float()
    return values.reshape(-1, values.shape[-1]).cpu()


class Looks:
    """Keeps what passes, under names of a trace, the first time that it passes."""

    def __init__(self):
        self.kept, self.undo = {}, []

    def put(self, name, values):
        self.kept.setdefault(name, values.clone())

    def output(self, module, name, change=rows):
        def hook(_module, _given, output):
            self.put(name, change(output[0] if isinstance(output, tuple) else output))

        self.undo.append(module.register_forward_hook(hook).remove)

    def given(self, module, look):
        def hook(_module, given, named):
            look(given, named)

        self.undo.append(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def calls(self, module, more):
        """Arguments and results of each call of `generate`, which is asked for more of what it computes."""
        log, official = [], module.generate

        def call(*given, **named):
            result = official(*given, **named, **more) if not more.keys() & named.keys() else official(*given, **(named | more))
            log.append((named, result))
            return result

        module.generate = call
        self.undo.append(lambda: module.__dict__.pop("generate"))
        return log

    def close(self):
        while self.undo:
            self.undo.pop()()


def look_at_sound(looks, code2wav):
    """Every stage of the first piece that is decoded; stages of convolutions are [channels, time]."""
    channels = lambda values: values[0].detach().float().cpu()  # noqa: E731
    looks.given(code2wav.pre_transformer, lambda given, named: looks.put("wav.embed", rows(named.get("inputs_embeds", given[0] if given else None))))
    for number, layer in enumerate(code2wav.pre_transformer.layers):
        looks.output(layer, f"wav.layer.{number}")
    looks.output(code2wav.pre_transformer.norm, "wav.norm")
    for number, (conv, block) in enumerate(code2wav.upsample):
        looks.output(conv, f"wav.up.{number}.conv", channels)
        looks.output(block, f"wav.up.{number}", channels)
    stages = list(code2wav.decoder)
    for number, stage in enumerate(stages):
        if hasattr(stage, "block"):
            looks.output(stage.block[1], f"wav.dec.{number}.tconv", channels)
        if number < len(stages) - 2:  # then an activation and the last convolution
            looks.output(stage, f"wav.dec.{number}", channels)
    looks.output(stages[-1], "wav.raw", lambda values: values.detach().float().reshape(-1).cpu())


def look_at_talker(looks, talker, positions, torch):
    """The prompt's pass through the layers, and the positions of every step."""
    text = talker.model
    looks.given(text.rotary_emb, lambda given, named: positions.append(named.get("position_ids", given[1] if len(given) > 1 else None).float().cpu()))
    for number, layer in enumerate(text.layers):
        name = f"talker.layer.{number}"
        looks.output(layer, f"{name}.hidden")
        looks.output(layer.self_attn, f"{name}.attn_out")
        looks.output(layer.mlp, f"{name}.mlp_out")
        looks.output(layer.mlp.shared_expert, f"{name}.shared_out")
        looks.output(layer.mlp.shared_expert_gate, f"{name}.shared_gate")

        def router(given, _named, name=name, gate=layer.mlp.gate):
            logits = torch.nn.functional.linear(given[0].reshape(-1, given[0].shape[-1]), gate.weight)
            looks.put(f"{name}.router_logits", rows(logits))

        def choice(given, _named, name=name):
            looks.put(f"{name}.topk_ids", given[1].detach().long().cpu())
            looks.put(f"{name}.topk_weights", rows(given[2]))

        looks.given(layer.mlp.gate, router)
        looks.given(layer.mlp.experts, choice)


# ---- recording -------------------------------------------------------------------------------------------------------


def record_answer(model, ids, answer, args, torch):
    """One spoken answer: its tensors, and its entry of the description."""
    config, looks, positions = model.config, Looks(), []
    steps = {"output_logits": True, "output_scores": True}
    greedy = {"output_logits": True, "do_sample": False, "top_k": None, "top_p": None}
    look_at_talker(looks, model.talker, positions, torch)
    look_at_sound(looks, model.code2wav)
    thinker, talker = looks.calls(model.thinker, {}), looks.calls(model.talker, steps)
    predictor = looks.calls(model.talker.code_predictor, greedy)
    given = torch.tensor([ids], device=model.thinker.device)
    if answer is not None:
        model.thinker.answer = torch.tensor([answer], device=given.device)
    try:
        sequences, wave = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            return_audio=True,
            speaker=args.speaker,
            thinker_do_sample=False,
            thinker_max_new_tokens=args.text_tokens,
            thinker_eos_token_id=config.im_end_token_id,
            thinker_pad_token_id=0,
            talker_do_sample=False,
            talker_max_new_tokens=args.talker_tokens,
            talker_repetition_penalty=args.repetition_penalty,
        )
    finally:
        looks.close()
    accept = config.talker_config.accept_hidden_layer
    states = thinker[0][1].hidden_states
    (named, result), tokens = talker[0], talker[0][1].sequences[0].cpu()
    kept = looks.kept | {
        "input_ids": given[0].cpu(),
        "text_ids": sequences[0, len(ids) :].cpu(),
        "thinker.embed": rows(torch.cat([step[0] for step in states], 1)),
        "thinker.accept": rows(torch.cat([step[accept] for step in states], 1)),
        "talker.ids": named["talker_input_ids"][0].cpu(),
        "talker.embeds": rows(named["inputs_embeds"]),
        "talker.trailing": rows(named["trailing_text_hidden"]),
        "talker.tts_pad": rows(named["tts_pad_embed"]),
        "talker.rope_delta": model.talker.rope_deltas.float().reshape(-1).cpu(),
        "talker.tokens": tokens,
        "talker.logits": torch.cat([rows(step) for step in result.logits]),
        "talker.scores": torch.cat([rows(step) for step in result.scores]),
        "talker.hidden": torch.cat([rows(named["inputs_embeds"][:, :1]) for named, _ in predictor]),
        "pred.logits": torch.stack([torch.cat([rows(step) for step in result.logits]) for _, result in predictor]),
        "wave": (wave if torch.is_tensor(wave) else wave[0]).float().reshape(-1).cpu(),
    }
    residual = torch.stack([result.sequences[0].cpu() for _, result in predictor], dim=1)
    kept["codes"] = torch.cat([tokens[None, : residual.shape[1]], residual])
    # what the first layer of the talker gets at each step after the prompt
    layers = [step[0][0] for step in result.hidden_states[1:]]
    kept["talker.next_embeds"] = torch.cat([rows(step[:, -1:]) for step in layers])
    places = [p.reshape(-1, p.shape[-1])[-3:] for p in positions]
    kept["talker.position_ids"] = places[0].expand(3, -1)
    kept["talker.decode_positions"] = torch.cat([p[0, -1:] for p in places[1:]])
    margins = add_probabilities(kept, config.talker_config.text_config, torch)
    entry = {
        "speaker": args.speaker,
        "frames": int(kept["codes"].shape[1]),
        "samples": len(kept["wave"]),
        "codec_ended": bool(tokens[-1] == config.talker_config.codec_eos_token_id),
        "min_talker_gap": gap(kept["talker.scores"]),
        "min_predictor_gap": gap(kept["pred.logits"]),
        "min_router_margin": min(margins, default=None),
        "codec_ids": tokens.tolist(),
    }
    return kept, entry


def gap(logits):
    """The smallest distance between the best and the second of any choice."""
    best = logits.topk(2, -1).values
    return round((best[..., 0] - best[..., 1]).min().item(), 5)


def add_probabilities(kept, config, torch):
    """Of the talker's routers; and how near each was to another choice."""
    margins, chosen = [], config.num_experts_per_tok
    for number in range(config.num_hidden_layers):
        logits = kept[f"talker.layer.{number}.router_logits"]
        kept[f"talker.layer.{number}.router_probs"] = torch.softmax(logits, -1)
        if chosen < config.num_experts:
            best = logits.topk(chosen + 1, -1).values
            margins.append(round((best[:, -2] - best[:, -1]).min().item(), 5))
    return margins


def record_sound(code2wav, path, torch):
    """Given codes as sound: in one piece, and in chunks as generate() decodes them."""
    import numpy

    try:
        codes = torch.from_numpy(numpy.load(path).astype("int64"))
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read {path}: {error}") from error
    groups = code2wav.config.num_quantizers
    if codes.ndim != 2 or codes.shape[0] != groups or not codes.shape[1]:
        raise Failure(f"{path}: codes of shape {list(codes.shape)}; wanted [{groups}, frames]")
    looks = Looks()
    look_at_sound(looks, code2wav)
    flat = lambda wave: wave.float().reshape(-1).cpu()  # noqa: E731
    with torch.no_grad():
        wave = flat(code2wav(codes[None]))
        looks.close()
        chunked = flat(code2wav.chunked_decode(codes[None], chunk_size=CHUNK, left_context_size=CONTEXT))
    kept = looks.kept | {"codes": codes, "wave": wave, f"chunked.{CHUNK}_{CONTEXT}": chunked}
    return kept, {"frames": int(codes.shape[1]), "samples": len(wave)}


def given_answers(args, prompts, config):
    """The ids of the given answers, each with the token that ends it; None where the thinker answers."""
    if not args.answer:
        return [None] * len(prompts)
    if len(args.answer) != len(prompts):
        raise Failure(f"{len(args.answer)} answers for {len(prompts)} prompts", status=2)
    tokenizer = prompt_input.load_tokenizer(args.checkpoint)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in args.answer]
    if not all(ids):
        raise Failure("an answer has no tokens", status=2)
    return [[*one, config.im_end_token_id] for one in ids]


def record_answers(args, config, torch):
    prompts = prompt_input.read(args)
    prompt_input.tokenize(prompts, args.checkpoint, args.system)
    answers = given_answers(args, prompts, config)
    speakers = config.talker_config.speaker_id
    if args.speaker.lower() not in speakers:
        raise Failure(f"{args.checkpoint}: no speaker {args.speaker!r}; it has {', '.join(speakers)}", status=2)
    media = {config.thinker_config.audio_token_id, config.thinker_config.image_token_id, config.thinker_config.video_token_id}
    if any(media & set(prompt["ids"]) for prompt in prompts):
        raise Failure("a prompt has placeholders of audio, images or videos; this script records text", status=2)
    model = without_thinker(args, config, torch) if args.answer else load_whole(args, torch)
    for prompt, answer in zip(prompts, answers, strict=True):
        yield record_answer(model, prompt["ids"], answer, args, torch)


def main():
    args = arguments()
    path = trace_file.output_path(args.out, args.overwrite)
    if text_recorder.read_config(args.checkpoint)["model_type"] != "qwen3_omni_moe":
        raise Failure(f"{args.checkpoint}: only Qwen3-Omni-MoE speaks")
    if text_recorder.check_version() < 5:
        raise Failure("transformers 5.1 or later is needed: speech of 4.57 samples the residual codes", status=1)
    import torch
    import transformers
    from safetensors.torch import save_file

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    config = transformers.AutoConfig.from_pretrained(args.checkpoint, local_files_only=True)
    if args.codes:
        code2wav = load_part("Qwen3OmniMoeCode2Wav", "code2wav.", args, config.code2wav_config, torch)
        letter, form = "w", WAVE_FORMAT
        recorded = (record_sound(code2wav, codes, torch) for codes in args.codes)
    else:
        letter, form = "s", SPEECH_FORMAT
        recorded = record_answers(args, config, torch)
    tensors, cases = {}, []
    for number, (kept, entry) in enumerate(recorded):
        tensors |= {f"{letter}{number:02}.{name}": values.contiguous() for name, values in kept.items()}
        cases.append({"case": number, **entry})
        print(f"case {number}: {entry['frames']} frames, {entry['samples']} samples")
    document = {
        "settings": {
            "dtype": args.dtype,
            "threads": args.threads,
            "attn": "eager",
            "text_tokens": args.text_tokens,
            "talker_tokens": args.talker_tokens,
            "repetition_penalty": args.repetition_penalty,
            "given_text": bool(args.answer),
            "decoding": "greedy: thinker, talker and code predictor",
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **trace_file.origin_digests(args.checkpoint, not args.no_digests),
        "cases": cases,
    }
    trace_file.write(path, tensors, document, save_file, form)


if __name__ == "__main__":
    trace_file.run(main)
