"""The method in one file: the blocks of a decoder-only LLM write the text encoding of a diffusion U-Net.

    python examples/method.py "a cat above a red apple" --seed 7 --out cat.png

draws with the shipped adapter, then takes one training step on the picture. `--llm FOLDER` reads the prompt with
another Llama-like LLM (Llama, Qwen, Mistral, SmolLM) through a new adapter, which has still to learn everything.
The library computes the same for more models, in less time and memory, with checks of what it is given.
Shape letters: B prompts, T tokens, L blocks, D the LLM's width, W the U-Net's text width, N image positions.
Source: Dong et al. 2024 (arXiv 2502.04412); `guided`, the scales and the refiner are ours.
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmdiff import LLMController  # only to open the shipped files


# ---- 1. Read a prompt: what each block of the LLM adds to each token, in context and alone ----
@torch.no_grad()
def read_blocks(llm, tokenizer, prompt, template="{prompt}"):
    """Return x_0 (T, D) of BOS and the prompt's tokens, and their updates u and v, (L, T, D) each."""
    tokens_of = partial(tokenizer, add_special_tokens=False)
    before = template.partition("{prompt}")[0]
    instruction = before.rstrip(" ")
    bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    prefix = [bos, *tokens_of(instruction).input_ids]  # the instruction is seen, and not kept
    words = tokens_of(before[len(instruction) :] + prompt).input_ids
    kept = torch.tensor([0, *range(len(prefix), len(prefix) + len(words))])
    model = llm.model
    x = model.embed_tokens(torch.tensor([[*prefix, *words]]))
    rotary = model.rotary_emb(x, torch.arange(x.shape[1])[None])
    pair_rotary = model.rotary_emb(x, torch.stack([torch.zeros_like(kept), kept], dim=1))
    x0, u, v = x[0, kept], [], []
    for block in model.layers:
        # u_l = block_l(x_l | causal context) - x_l
        out = block(x, attention_mask=causal(x), position_embeddings=rotary)
        u.append((out - x)[0, kept])
        # v_l = block_l(x_l | BOS and the token) - x_l
        pairs = torch.stack([x[0, :1].expand(len(kept), -1), x[0, kept]], dim=1)
        alone = block(pairs, attention_mask=causal(pairs), position_embeddings=pair_rotary) - pairs
        v.append(torch.cat([u[-1][:1], alone[1:, 1]]))  # BOS has no context: v = u
        x = out
    return x0, torch.stack(u), torch.stack(v)


def causal(x):  # a mask that hides later tokens, (1, 1, T, T)
    return x.new_full((x.shape[1], x.shape[1]), torch.finfo(x.dtype).min).triu(1)[None, None]


# ---- 2. Sum the blocks' scores to the text encoding ----
class ContextEncoding(nn.Module):  # guided=False is the paper's own sum
    def __init__(self, num_blocks, hidden_size, *, guided=True, clip=3.0):
        super().__init__()
        self.clip = clip
        self.gamma = nn.Parameter(torch.ones(num_blocks))
        self.kappa = nn.Parameter(torch.ones(num_blocks)) if guided else None
        self.h_raw = nn.Parameter(torch.full((num_blocks,), 0.01))  # h_l = h_raw_l^2 / (2 D)
        self.register_buffer("x0_scale", torch.ones(()))
        self.register_buffer("score_scale", torch.ones(num_blocks))
        self.register_buffer("lone_scale", torch.ones(num_blocks))

    def forward(self, x0, u, v, *, noise=False):  # (T, D), (L, T, D), (L, T, D) => (T, D)
        # s_l = u_l - v_l;   g_l = gamma_l / score_scale_l,   k_l = kappa_l / lone_scale_l
        # c = x_0 + sum_l ( g_l s_l + k_l v_l + sqrt(2 h_l) eps_l )
        c = x0 / self.x0_scale
        c = c + torch.einsum("l,ltd->td", self.gamma, self.in_scales(u - v, self.score_scale))
        if self.kappa is not None:
            c = c + torch.einsum("l,ltd->td", self.kappa, self.in_scales(v, self.lone_scale))
        if noise:  # the sum of independent draws is one draw with the sum of their variances
            c = c + self.h_raw.norm() * c.shape[-1] ** -0.5 * torch.randn_like(c)
        return c

    def in_scales(self, update, scale):
        # In units of each block's median norm; what is longer than `clip` of them is shortened to that.
        size = update.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return update * torch.minimum(1 / scale[:, None, None], self.clip / size)

    @torch.no_grad()
    def calibrate(self, readings):
        # The median norms of the words (BOS left out) of a few prompts, once per LLM.
        x0 = torch.cat([one[0][1:] for one in readings])
        u, v = (torch.cat([one[i][:, 1:] for one in readings], dim=1) for i in (1, 2))
        self.x0_scale.copy_(x0.norm(dim=-1).median())
        self.score_scale.copy_((u - v).norm(dim=-1).median(dim=1).values)
        self.lone_scale.copy_(v.norm(dim=-1).median(dim=1).values)


# ---- 3. Let the tokens look at each other (optional, not the paper's) ----
def attention(q, k, v, heads, mask):  # (B, N, heads * width), (B, T, heads * width) => (B, N, heads * width)
    q, k, v = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class RefinerBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.heads = max((n for n in range(1, width // 32 + 1) if width % n == 0), default=1)
        self.norm_attn, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, mask):
        # x = x + Attn(norm(x));   x = x + W_2 gelu(W_1 norm(x))
        y = self.norm_attn(x)
        x = x + self.to_out(attention(self.to_q(y), self.to_k(y), self.to_v(y), self.heads, mask))
        return x + self.narrow(F.gelu(self.widen(self.norm_mlp(x))))


class Refiner(nn.Module):
    def __init__(self, hidden_size, width, layers):
        super().__init__()
        self.to_inside = nn.Linear(hidden_size, width)
        self.blocks = nn.ModuleList(RefinerBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.to_outside = nn.Linear(width, hidden_size)
        nn.init.zeros_(self.to_outside.weight)
        nn.init.zeros_(self.to_outside.bias)

    def forward(self, c, mask):
        # c' = c + W_out norm(blocks(W_in c));   W_out starts at 0: no refiner
        inside = self.to_inside(c)
        for block in self.blocks:
            inside = block(inside, mask)
        return c + self.to_outside(self.norm(inside))


# ---- 4. Give every cross-attention layer of the U-Net a second branch that reads c ----
def cross_attention(unet):  # the layers that read the text, by name
    return {name.replace(".", "_"): m for name, m in unet.named_modules() if name.endswith(".attn2")}


class Branch(nn.Module):
    def __init__(self, attn, hidden_size):
        super().__init__()
        inner, out = attn.to_q.out_features, attn.to_out[0]
        self.to_q = nn.Linear(attn.to_q.in_features, inner, bias=attn.to_q.bias is not None)
        self.to_k = nn.Linear(hidden_size, inner, bias=False)
        self.to_v = nn.Linear(hidden_size, inner, bias=False)
        self.to_out = nn.Linear(inner, out.out_features, bias=out.bias is not None)
        self.a1, self.b1, self.a2, self.b2 = (nn.Parameter(torch.tensor(x)) for x in (1.0, 0.0, 1.0, 0.0))
        # Query and output start as copies of the layer's own; key and value are new.
        self.to_q.load_state_dict(attn.to_q.state_dict())
        self.to_out.load_state_dict(out.state_dict())


class TwoBranchProcessor:  # in place of a diffusers attention layer's own processor
    def __init__(self, branch):
        self.branch = branch

    def __call__(self, attn, z, encoder_hidden_states, attention_mask=None, temb=None):
        # z: image states (B, N, width); encoder_hidden_states: [phi(c) ; c], (B, T, W + D)
        branch, width = self.branch, attn.to_k.in_features
        phi_c, c = encoder_hidden_states.tensor_split([width], dim=-1)
        mask = (c != 0).any(dim=-1)[:, None, None]  # rows of zeros are padding
        # out = Attn(q^(z), k^(phi(c)), v^(phi(c))) * a1 exp(b1)  +  Attn(q(z), k(c), v(c)) * a2 exp(b2)
        old = attention(attn.to_q(z), attn.to_k(phi_c), attn.to_v(phi_c), attn.heads, mask)
        new = attention(branch.to_q(z), branch.to_k(c), branch.to_v(c), attn.heads, mask)
        old_gate, new_gate = branch.a1 * branch.b1.exp(), branch.a2 * branch.b2.exp()
        return attn.to_out[0](old) * old_gate + branch.to_out(new) * new_gate


class Adapter(nn.Module):  # all that is trained, by the names of the library's LLMDiffAdapter
    def __init__(self, unet, num_blocks, hidden_size, *, refiner_layers=2, refiner_width=None, **encoding):
        super().__init__()
        self.context = ContextEncoding(num_blocks, hidden_size, **encoding)
        self.norm = nn.LayerNorm(hidden_size)
        width = refiner_width or min(hidden_size, 1024)
        self.refiner = Refiner(hidden_size, width, refiner_layers) if refiner_layers else None
        self.phi = nn.Linear(hidden_size, unet.config.cross_attention_dim)
        layers = cross_attention(unet).items()
        self.branches = nn.ModuleDict({name: Branch(attn, hidden_size) for name, attn in layers})

    def forward(self, readings, *, noise=False):
        # The text states [phi(c) ; c] of B prompts, (B, T, W + D), padded with rows of zeros.
        rows = [self.context(*one, noise=noise) for one in readings]
        real = pad_sequence([row.new_ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
        c = self.norm(pad_sequence(rows, batch_first=True))
        if self.refiner is not None:
            c = self.refiner(c, real[:, None, None])
        return torch.cat([self.phi(c), c], dim=-1) * real[..., None]

    def attach(self, unet):
        for name, attn in cross_attention(unet).items():
            attn.set_processor(TwoBranchProcessor(self.branches[name]))


# ---- 5. Draw a picture; take a training step ----
def draw(pipe, adapter, read, prompt, seed, **options):
    """Return the pipeline's picture; the negative prompt is the empty text."""
    with torch.no_grad():
        negative, positive = adapter([read(""), read(prompt)]).split(1)
    options = {"num_inference_steps": 20, "guidance_scale": 3.0, **options}
    options |= {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    return pipe(generator=torch.Generator().manual_seed(seed), **options).images[0]


def training_step(unet, scheduler, states, latents, noise, timesteps, optimizer):
    """Return the loss of a batch, after one step of the optimiser on the adapter that made the text states."""
    # x_t = sqrt(A_t) x_0 + sqrt(1 - A_t) eps;   predict eps, or v = sqrt(A_t) eps - sqrt(1 - A_t) x_0
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicts_v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if predicts_v else noise
    loss = F.mse_loss(unet(noisy, timesteps, states).sample, target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prompt")
    parser.add_argument("--llm", help="a folder or Hub id; default: the shipped adapter's LLM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="method.png")
    args = parser.parse_args()
    shipped = LLMController.from_pretrained("openmoji")
    pipe = shipped.load_pipeline()
    llm, tokenizer = shipped.llm.model, shipped.llm.tokenizer
    if args.llm:
        llm = AutoModelForCausalLM.from_pretrained(args.llm, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(args.llm)
    read = partial(read_blocks, llm, tokenizer, template=shipped.adapter.config.template)
    refiner = {name: shipped.adapter.config[name] for name in ("refiner_layers", "refiner_width")}
    adapter = Adapter(pipe.unet, llm.config.num_hidden_layers, llm.config.hidden_size, **refiner)
    if args.llm:
        adapter.context.calibrate([read(text) for text in (args.prompt, "two red apples", "a house")])
    else:
        adapter.load_state_dict(shipped.adapter.state_dict())
    adapter.attach(pipe.unet.requires_grad_(False))
    (picture := draw(pipe, adapter, read, args.prompt, args.seed)).save(args.out)
    with torch.no_grad():
        pixels = pipe.image_processor.preprocess(picture)
        latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4)
    states, noise = adapter([read(args.prompt)], noise=True), torch.randn_like(latents)
    timesteps = torch.randint(1000, (1,))
    loss = training_step(pipe.unet, pipe.scheduler, states, latents, noise, timesteps, optimizer)
    print(f"{args.out} is drawn; the loss of one training step on it is {loss:.4f}")


if __name__ == "__main__":
    main()
