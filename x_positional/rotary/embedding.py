"""RotaryEmbedding of the drop-in: from positions to angles to rotated queries and keys, with no cache.

B batch, H heads, T tokens, S key tokens, D head dim, F frequencies, R = 2F rotated channels, A position axes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from x_positional.errors import ArgumentError, PositionError
from x_positional.rotary.apply import align_rows, apply_rotary_emb, negative_dim, rotate, wider
from x_positional.schemes.precision import exact_dtype
from x_positional.schemes.rotary.frequencies import angles, inverse_frequencies
from x_positional.schemes.rotary.rope import XPOS_FASTEST, xpos_decay


class RotaryEmbedding(nn.Module):
    """The class of the same name in rotary-embedding-torch 0.9.1 (RoPE: Su et al. 2021, arXiv:2104.09864).

    Positions, frequencies and angles are float64 (float32 on MPS), whatever the dtype of the module, of queries and keys,
    or of autocast. Queries and keys keep their shape and dtype. There is no cache: tables are computed from positions in
    every call, so no call affects a later one.

    State dict: `freqs` [F], compatible with 0.9.1 in both directions. Frequencies that are not learned are a plain tensor,
    not a parameter: casts and meta-device initialisation do not affect them. `freqs` is float32, and what its rounding
    leaves off is kept beside it and added where angles are computed. If a loaded `freqs` is only a rounding of the exact
    frequencies, the exact ones stay; otherwise it replaces them, as does a tensor assigned to `freqs`. Learned frequencies
    are a parameter that stays float32 when the module is cast to half precision; call `reset_parameters` after `to_empty`.

    Args:
        dim: rotated channels, R.
        custom_freqs: [F] frequencies in radians per position, instead of `freqs_for`.
        freqs_for: "lang": theta^(-2i/dim), i = 0 .. dim/2-1. "pixel": pi * linspace(1, max_freq/2, dim/2), for coordinates
            in -1 .. 1. "constant": num_freqs ones.
        theta: base of the frequencies, for "lang".
        max_freq: highest frequency, for "pixel".
        num_freqs: number of frequencies, for "constant".
        learned_freq: train the frequencies.
        use_xpos: scores decay with distance (xPos, Sun et al. 2022, arXiv:2212.10554, algorithm 1).
        xpos_scale_base: tokens over which the first pair decays by 0.4 / 1.4.
        interpolate_factor: divides positions (Chen et al. 2023, arXiv:2306.15595).
        theta_rescale_factor: s multiplies theta by s^(dim/(dim-2)) (NTK-aware, bloc97 2023).
        seq_before_head_dim: tensors are [B T H D], not [B H T D].
        cache_if_possible: ignored; there is no cache.
        cache_max_seq_len: ignored; there is no cache.

    Raises:
        ArgumentError: for all invalid arguments at once.
    """

    freqs: Tensor
    apply_rotary_emb = staticmethod(apply_rotary_emb)

    def __init__(
        self,
        dim: int,
        custom_freqs: Tensor | None = None,
        freqs_for: Literal["lang", "pixel", "constant"] = "lang",
        theta: float = 10000,
        max_freq: float = 10,
        num_freqs: int = 1,
        learned_freq: bool = False,
        use_xpos: bool = False,
        xpos_scale_base: float = 512,
        interpolate_factor: float = 1.0,
        theta_rescale_factor: float = 1.0,
        seq_before_head_dim: bool = False,
        cache_if_possible: bool = True,
        cache_max_seq_len: int = 8192,
    ):
        super().__init__()
        problems = argument_problems(dim, custom_freqs, freqs_for, interpolate_factor, theta_rescale_factor)
        if problems:
            raise ArgumentError("RotaryEmbedding: " + " ".join(problems))
        self.dim, self.freqs_for, self.learned_freq = dim, freqs_for, learned_freq
        self.interpolate_factor = interpolate_factor
        self.use_xpos, self.scale_base = use_xpos, xpos_scale_base
        self.seq_before_head_dim = seq_before_head_dim
        self.default_seq_dim = -3 if seq_before_head_dim else -2
        self.cache_if_possible, self.cache_max_seq_len = cache_if_possible, cache_max_seq_len

        target = torch.get_default_device() if custom_freqs is None else custom_freqs.device
        device = torch.device("cpu") if target.type == "meta" else target
        if custom_freqs is not None:
            freqs = custom_freqs.detach().to(exact_dtype(device), copy=True)
        elif freqs_for == "lang":
            if theta_rescale_factor != 1:
                theta *= theta_rescale_factor ** (dim / (dim - 2))
            freqs = inverse_frequencies(dim, theta, device, count=dim // 2)
        elif freqs_for == "pixel":
            freqs = torch.pi * torch.linspace(1.0, max_freq / 2, dim // 2, device=device, dtype=exact_dtype(device))
        else:
            freqs = torch.ones(num_freqs, device=device, dtype=exact_dtype(device))
        self.initial_freqs = freqs
        if learned_freq:
            self.freqs = nn.Parameter(freqs.to(target, torch.float32))
        else:
            self._keep(freqs)

    def _keep(self, exact: Tensor) -> None:
        """Set frequencies that are not learned: rounded to float32, and the rest."""
        self.freqs = self._rounded = exact.to(torch.float32, copy=True)
        self._rest = exact - self.freqs.to(exact.dtype)

    @property
    def _exact(self) -> Tensor:
        """[F] the frequencies that angles are computed from. The sum of the rounding and the rest is exact."""
        wide = self.freqs.to(exact_dtype(self.freqs.device))
        return wide + self._rest if not self.learned_freq and self.freqs is self._rounded else wide

    def reset_parameters(self) -> None:
        """Reset the frequencies to their initial values."""
        if not self.learned_freq:
            self._keep(self.initial_freqs)
            return
        with torch.no_grad():
            self.freqs.copy_(self.initial_freqs)

    @property
    def device(self) -> torch.device:
        return self.freqs.device

    def get_seq_pos(
        self,
        seq_len: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        offset: float | Tensor = 0,
    ) -> Tensor:
        """[T] positions offset .. offset+seq_len-1, divided by interpolate_factor.

        float64 if `dtype` is float64, else float32: half precision cannot hold positions (bfloat16 has no 257).
        """
        positions = self._positions(seq_len, torch.device(device or self.device), offset)
        return positions.to(wider(dtype or torch.float32))

    def forward(self, t: Tensor, seq_len: int | None = None, offset: int = 0) -> Tensor:
        """Positions t [...] -> angles [... R], each angle twice.

        float64 for float64 positions, which keeps angles beyond some thousands of radians precise; else float32. seq_len
        and offset are ignored: they were keys of the cache.
        """
        return self._angles(t).to(self._public_dtype(t)).repeat_interleave(2, dim=-1)

    def rotate_queries_or_keys(
        self,
        t: Tensor,
        seq_dim: int | None = None,
        offset: float | Tensor = 0,
        scale: float | Tensor | None = None,
    ) -> Tensor:
        """Rotate queries or keys.

        Args:
            t: [B H T D].
            seq_dim: token axis of t.
            offset: position of the first token; t has positions offset .. offset+T-1.
            scale: factor on the rotated channels, [T R] or any shape that broadcasts. xPos requires it: a slice of
                `get_scale(get_seq_pos(S))` for queries, the inverse of the slice for keys.

        Raises:
            ArgumentError: for xPos without `scale`.
        """
        if self.use_xpos and scale is None:
            raise ArgumentError(
                "xPos scales queries and keys differently: use rotate_queries_and_keys or rotate_queries_with_cached_keys, "
                "or pass scale."
            )
        tokens = t.shape[self._axis(t, seq_dim)]
        positions = self._positions(tokens, t.device, offset)
        return self._rotate(t, positions, seq_dim, 1.0 if scale is None else scale)

    def rotate_queries_with_cached_keys(
        self, q: Tensor, k: Tensor, seq_dim: int | None = None, offset: float | Tensor = 0
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries and all keys, cached ones included, when decoding with a cache of unrotated keys.

        With xPos both are centred at S // 2, so the scores equal the last rows of those of the whole sequence.

        Args:
            q: [B H T D], the last T tokens; positions S-T+offset .. S-1+offset.
            k: [B H S D], unrotated; positions 0 .. S-1.
            seq_dim: token axis of q and k.
            offset: added to the positions of queries only, as in 0.9.1.

        Raises:
            ArgumentError: for more queries than keys.
            PositionError: if the decay of xPos overflows the dtype.
        """
        queries, keys = q.shape[self._axis(q, seq_dim)], k.shape[self._axis(k, seq_dim)]
        if queries > keys:
            raise ArgumentError(f"{queries} queries for {keys} keys: k must contain the cached keys and the new ones.")
        q_positions = self._positions(queries, q.device, keys - queries + offset)
        k_positions = self._positions(keys, k.device, 0)
        q_scale, k_scale = self._scales(q, k, q_positions, k_positions, keys)
        return self._rotate(q, q_positions, seq_dim, q_scale), self._rotate(k, k_positions, seq_dim, k_scale)

    def rotate_queries_and_keys(self, q: Tensor, k: Tensor, seq_dim: int | None = None) -> tuple[Tensor, Tensor]:
        """Rotate q and k, both [B H T D], at positions 0 .. T-1.

        Raises:
            ArgumentError: if their lengths differ.
            PositionError: if the decay of xPos overflows the dtype.
        """
        queries, keys = q.shape[self._axis(q, seq_dim)], k.shape[self._axis(k, seq_dim)]
        if queries != keys:
            raise ArgumentError(f"{queries} queries for {keys} keys: use rotate_queries_with_cached_keys.")
        return self.rotate_queries_with_cached_keys(q, k, seq_dim)

    def get_scale(self, t: Tensor, seq_len: int | None = None, offset: int = 0) -> Tensor:
        """xPos: positions t [T] -> [T R], the factor by which queries are multiplied and keys divided.

        It is centred at len(t) // 2, so queries and keys of one attention call must use slices of a single call.
        float64 for float64 positions, else float32. seq_len and offset are ignored: they were keys of the cache.

        Raises:
            ArgumentError: if the module was made without use_xpos=True.
        """
        if not self.use_xpos:
            raise ArgumentError("get_scale is for xPos: make RotaryEmbedding with use_xpos=True.")
        return self._decay(t, len(t) // 2).to(self._public_dtype(t))

    def get_axial_freqs(self, *dims: int, offsets: Sequence[float] | Tensor | None = None) -> Tensor:
        """Angles of a grid of A = len(dims) axes, for `apply_rotary_emb`.

        interpolate_factor is for sequences and does not apply to grids, as in 0.9.1.

        Args:
            dims: size of each axis. Its coordinates are linspace(-1, 1, size) for "pixel", else 0 .. size-1.
            offsets: one number per axis, added to its coordinates.

        Returns:
            [*dims, A*R]: R channels for each axis.
        """
        if offsets is not None and len(offsets) != len(dims):
            raise ArgumentError(f"offsets has {len(offsets)} numbers for {len(dims)} axes: pass one per axis.")
        wide, grid = exact_dtype(self.device), []
        for axis, size in enumerate(dims):
            if self.freqs_for == "pixel":
                places = torch.linspace(-1.0, 1.0, size, device=self.device, dtype=wide)
            else:
                places = torch.arange(size, device=self.device, dtype=wide)
            if offsets is not None:
                places = places + torch.as_tensor(offsets[axis], device=self.device, dtype=wide)
            angle = self._angles(places)
            shape = [size if other == axis else 1 for other in range(len(dims))]
            grid.append(angle.view(*shape, -1).expand(*dims, -1))
        return torch.cat(grid, dim=-1).to(self._public_dtype()).repeat_interleave(2, dim=-1)

    def _positions(self, tokens: int, device: torch.device, offset: float | Tensor) -> Tensor:
        return (torch.arange(tokens, device=device, dtype=exact_dtype(device)) + offset) / self.interpolate_factor

    def _angles(self, positions: Tensor) -> Tensor:
        """[...] -> [... F]"""
        return angles(positions, self._exact.to(positions.device, exact_dtype(positions.device)))

    def _decay(self, positions: Tensor, center: int) -> Tensor:
        """xPos: [T] -> [T R]"""
        decay = xpos_decay(positions, self.dim, self.freqs.shape[0], center, self.scale_base)
        return decay.repeat_interleave(2, dim=-1)

    def _scales(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, keys: int
    ) -> tuple[float | Tensor, float | Tensor]:
        if not self.use_xpos:
            return 1.0, 1.0
        center = keys // 2
        farthest = max(center, (keys - 1) / self.interpolate_factor - center)
        for x in (q, k):
            reach = self.scale_base * math.log(torch.finfo(x.dtype).max) / XPOS_FASTEST
            if farthest > reach:
                raise PositionError(
                    f"xPos over {keys} tokens overflows {x.dtype}: with xpos_scale_base={self.scale_base:g} tokens may be at "
                    f"most {int(reach)} from the middle. Raise xpos_scale_base in proportion, or use a wider dtype."
                )
        return self._decay(q_positions, center), 1 / self._decay(k_positions, center)

    def _rotate(self, t: Tensor, positions: Tensor, seq_dim: int | None, scale: float | Tensor) -> Tensor:
        axis, angle = self._axis(t, seq_dim), self._angles(positions)
        cos, sin = angle.cos(), angle.sin()
        pairs = torch.stack((cos, cos), dim=-1), torch.stack((-sin, sin), dim=-1)
        cos, sin = (align_rows(x.flatten(-2), t, axis) for x in pairs)
        if isinstance(scale, Tensor) and scale.ndim == 2:
            scale = align_rows(scale, t, axis)
        return rotate(t, cos, sin, scale=scale)

    def _axis(self, t: Tensor, seq_dim: int | None) -> int:
        return negative_dim(self.default_seq_dim if seq_dim is None else seq_dim, t)

    def _public_dtype(self, positions: Tensor | None = None) -> torch.dtype:
        """float64 if positions or learned frequencies are float64, else float32."""
        exact = (positions is not None and positions.dtype == torch.float64) or (
            self.learned_freq and self.freqs.dtype == torch.float64
        )
        return torch.float64 if exact else torch.float32

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryEmbedding":
        """`.to(...)`, `.half()` and so on: frequencies change device but stay float32 or float64."""

        def keep_wide(x: Tensor) -> Tensor:
            new = fn(x)
            return new if new.dtype == wider(new.dtype) else x.to(new.device)

        super()._apply(keep_wide, recurse)
        device = fn(torch.empty(0, device=self.initial_freqs.device)).device
        if device.type != "meta":
            self.initial_freqs = self.initial_freqs.to(device, exact_dtype(device))
            if not self.learned_freq:
                self._keep(self._exact.to(device, exact_dtype(device)))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.learned_freq:
            destination[prefix + "freqs"] = self.freqs.detach().float()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if not self.learned_freq:
            state_dict = dict(state_dict)
            saved = state_dict.pop(prefix + "freqs", None)
            if saved is not None and saved.shape != self.freqs.shape:
                error_msgs.append(
                    f"{prefix}freqs has shape {tuple(saved.shape)} in the state dict, {tuple(self.freqs.shape)} in this module: "
                    "make it with the same dim and frequencies."
                )
            elif saved is not None and not saved.is_meta and not is_rounding(saved, exact := self._exact):
                self._keep(saved.to(exact))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def argument_problems(
    dim: int, custom_freqs: Tensor | None, freqs_for: str, interpolate_factor: float, theta_rescale_factor: float
) -> list[str]:
    """All problems of the arguments of `RotaryEmbedding`."""
    found = []
    if freqs_for not in ("lang", "pixel", "constant"):
        found.append(f"freqs_for={freqs_for!r} is not one of 'lang', 'pixel', 'constant'.")
    if interpolate_factor < 1:
        found.append(f"interpolate_factor={interpolate_factor} must be at least 1; it divides positions.")
    if dim < 2:
        found.append(f"dim={dim} must be at least 2, one pair of channels.")
    if custom_freqs is not None and (custom_freqs.ndim != 1 or custom_freqs.is_meta):
        shape = f"shape {tuple(custom_freqs.shape)}" + (" on the meta device" if custom_freqs.is_meta else "")
        found.append(f"custom_freqs has {shape}: pass a 1-dim tensor with one frequency per pair of channels.")
    if theta_rescale_factor != 1 and dim == 2 and freqs_for == "lang" and custom_freqs is None:
        found.append(f"theta_rescale_factor={theta_rescale_factor} needs dim above 2 (its exponent is dim/(dim-2)).")
    return found


def is_rounding(saved: Tensor, exact: Tensor) -> bool:
    """Whether `saved` equals `exact` up to the rounding of its dtype, in storage and in computing a power."""
    limits = torch.finfo(saved.dtype if saved.is_floating_point() else torch.float32)
    slack = 32 * limits.eps * exact.abs() + limits.smallest_normal * limits.eps
    return bool(((saved.to(exact) - exact).abs() <= slack).all())
