"""Prompts of a text file, and their embeddings, computed when first asked for."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solverbench.errors import SolverBenchError

LARGEST = 1 << 28  # bytes of a file of prompts; a million of MS-COCO take 60 MB
GROUP = 16  # prompts embedded together


def read_prompts(path: Path) -> list[str]:
    """A prompt a line of UTF-8 text; an empty line is the empty prompt.

    Raises:
        SolverBenchError: for a file that is missing, too large, empty or no UTF-8.
    """
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > LARGEST):
            raise SolverBenchError(
                f"{path} is no file of prompts; wanted: a prompt a line, up to {LARGEST} bytes"
            )
        text = path.read_text("utf-8-sig")  # newlines of all systems become \n
    except OSError as error:
        why = f"{path} cannot be read: {error.strerror}"
        raise SolverBenchError(f"{why}; wanted: a prompt a line") from error
    except ValueError as error:
        raise SolverBenchError(f"{path} is no UTF-8 text; wanted: a prompt a line") from error
    if not text:
        raise SolverBenchError(f"{path} is empty; wanted: a prompt a line")
    return text.removesuffix("\n").split("\n")  # splitlines would also split within prompts


class Embeddings:
    """Last hidden states of a text encoder for a list of prompts.

    Equal prompts share one embedding. Prompts are embedded in fixed groups of 16 neighbours, so
    that the bits of an embedding follow from the list alone, whatever was asked for before. Groups
    stay in host memory, those used longest ago are dropped once they exceed ``limit``: a prompt of
    SD 1.5 takes 0.24 MB, so the default holds 6,800 and a list of 30,000 would need 7.1 GB.

    Args:
        encoder: text encoder, float32.
        tokenizer: called as those of transformers are.
        prompts: all of them.
        num_tokens: of a prompt, padded with the end token or cut.
        limit: bytes of host memory.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        prompts: Sequence[str],
        num_tokens: int,
        limit: int = 1_600_000_000,
    ) -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self.num_tokens, self.limit = num_tokens, limit
        self.distinct = list(dict.fromkeys(prompts))
        index = {prompt: i for i, prompt in enumerate(self.distinct)}
        self.places = [index[prompt] for prompt in prompts]
        self.groups: OrderedDict[int, Tensor] = OrderedDict()

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """Tokens of prompts, (B, num_tokens), int64."""
        fixed = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids: Tensor = self.tokenizer(list(prompts), max_length=self.num_tokens, **fixed).input_ids
        return ids

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of any prompts, (B, num_tokens, width), float32, where the encoder is."""
        device = next(self.encoder.parameters()).device
        done: Tensor = self.encoder(self.token_ids(prompts).to(device))[0]
        return done

    def of(self, lines: Sequence[int]) -> Tensor:
        """Embeddings of the prompts with these indices, (B, num_tokens, width), on the host."""
        places = [divmod(self.places[line], GROUP) for line in lines]
        for group in dict.fromkeys(group for group, _ in places):
            if group not in self.groups:
                first = group * GROUP
                self.groups[group] = self.embed(self.distinct[first : first + GROUP]).cpu()
            self.groups.move_to_end(group)
        rows = torch.stack([self.groups[group][row] for group, row in places])
        size = rows[0].nbytes * GROUP
        while len(self.groups) > max(1, self.limit // size):
            self.groups.popitem(last=False)
        return rows
