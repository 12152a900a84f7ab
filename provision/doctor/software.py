"""Weights, hubs, model and engine."""

from __future__ import annotations

from provision.doctor.evidence import STATUS, Evidence
from provision.doctor.rule import Rule, said, while_not_ready

STALLED_S = 120.0


def stalled_download(evidence: Evidence) -> str | None:
    if evidence.phase != "weights" or evidence.silent_s is None or evidence.silent_s < STALLED_S:
        return None
    return f"phase weights, and no byte for {evidence.silent_s:.0f} s"


RULES = (
    Rule(
        "model-gated",
        "status or agent: gated, the hub refuses the token",
        "the hub gives this model only to accounts that have accepted its licence",
        "accept the licence on the model's page, then HF_TOKEN=… deployctl redeploy {name}",
        while_not_ready(said(r"\bis gated\b|refuses the token|GatedRepoError|refuses access to", STATUS, "agent")),
    ),
    Rule(
        "model-not-found",
        "status or agent: does not exist, no revision",
        "there is no model, or no revision, of this name",
        "deployctl redeploy {name} --model org/name[@revision], as its page has it",
        while_not_ready(
            said(
                r"does not exist on|has no revision|is not a repository name|RepositoryNotFound"
                r"|model folder .* does not exist"
            )
        ),
    ),
    Rule(
        "hub-limits",
        "agent: 429",
        "the hub limits how often this address may ask",
        "HF_TOKEN=… deployctl redeploy {name}: an account is allowed more; or deployctl weights push into a bucket",
        while_not_ready(said(r"answers 429|429 (?:Client Error|Too Many)|rate limit", STATUS, "agent")),
    ),
    Rule(
        "hub-unreachable",
        "status or agent: no connection to the hub",
        "the machine cannot reach the model's hub (in mainland China huggingface.co is closed)",
        "deployctl redeploy {name} --model modelscope:org/name, --hub-endpoint <a mirror>, or --proxy <a proxy>",
        while_not_ready(
            said(
                r"no connection to https?://|huggingface\.co.*(?:timed out|unreachable|resolve|refused|reset)"
                r"|Temporary failure in name resolution|Network is unreachable",
                STATUS,
                "agent",
            )
        ),
    ),
    Rule(
        "bucket-refuses",
        "status or agent: the role may not read the bucket of weights",
        "the machine's role may not read the bucket that the weights are in, or the bucket is elsewhere",
        "deployctl permissions shows the rights; the bucket must be in the machine's region",
        while_not_ready(
            said(r"allow the machine's role to list and read|NoSuchBucket|there is nothing under (?:s3|oss)://")
        ),
    ),
    Rule(
        "weights-damaged",
        "status or agent: arrives different, invalid safetensors header",
        "a file of the model is not what its source lists",
        "deployctl redeploy {name}: it is fetched again; if it stays, a proxy changes files, or the push was cut off",
        while_not_ready(
            said(r"arrives different from|HeaderTooLarge|InvalidHeader|is not a safetensors index|checksum .*mismatch")
        ),
    ),
    Rule(
        "download-stalls",
        "status: phase weights without a byte for two minutes",
        "the download of the weights has come to a stand",
        "deployctl logs {name} --agent -f: it is tried again by itself and goes on where it was; else "
        "--hub-endpoint, or weights push",
        stalled_download,
    ),
    Rule(
        "model-unsupported",
        "status or engine: not supported",
        "the runtime cannot serve this model's architecture or files",
        "deployctl plan --model <another>: Llama, Qwen2, Qwen3, Qwen3-MoE and Mistral in safetensors are served",
        while_not_ready(
            said(
                r"architecture\S* .*not supported|is not supported: |UnsupportedModel|has no config\.json"
                r"|choose a model in Hugging"
            )
        ),
    ),
    Rule(
        "context-too-long",
        "status or engine: max_model_len over the model's positions",
        "a request may be longer than the model can take",
        "deployctl redeploy {name} --max-model-len <the model's own>, or --rope-scaling",
        while_not_ready(said(r"max_model_len \d+ is over|longer than the model's", STATUS, "engine")),
    ),
    Rule(
        "engine-hangs",
        "engine: a step took too long",
        "the engine did not move, and was started again",
        "deployctl logs {name} --engine; if it comes again: deployctl redeploy {name} --max-num-seqs <less>",
        said(r"the engine hangs|restart of the engine|nothing moves for", STATUS, "engine", "agent"),
    ),
    Rule(
        "engine-cannot-stay",
        "status: engine keeps ending",
        "the engine ends again and again",
        "deployctl logs {name} --engine shows its last words; deployctl rollback {name} brings back the release before",
        while_not_ready(
            said(r"(?:engine|server) keeps ending|keeps exiting with code|start-limit-hit|Start request repeated")
        ),
    ),
    Rule(
        "answers-are-broken",
        "engine: NaN",
        "the model computes numbers that are none (NaN)",
        "deployctl redeploy {name} --dtype float32 (or bfloat16 in place of float16), --quantization none",
        said(r"\bNaN\b.*logits|logits.*\bNaN\b|not a number", STATUS, "engine", "server"),
    ),
    Rule(
        "release-rolled-back",
        "status: release … still serves",
        "a new release failed, and the one before serves",
        "deployctl logs {name} --since 30m, then deployctl redeploy {name} with what was wrong put right",
        said(r"still serves|serves again", STATUS),
    ),
)
