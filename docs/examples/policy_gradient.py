"""Plain PyTorch on the vector environment: how far to go from the posterior's mean to the mask's motion.

A linear policy u ~ N(W·residual + b, σ²I) in units of the encoder's Gaussian, and one-step policy
gradient (REINFORCE) with the batch's mean reward as baseline.
"""

import argparse

import gymnasium as gym
import torch

import bmvtrack  # noqa: F401  (registers BMVTrack-v0)
from bmvtrack import gaussian

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=600)
parser.add_argument("--environments", type=int, default=32)
parser.add_argument("--sigma", type=float, default=0.7)
parser.add_argument("--sequences", default=None, help="davis16:FOLDER; default: synthetic")
parser.add_argument("--device", default="cpu")
options = parser.parse_args()

environment = gym.make_vec(
    "BMVTrack-v0",
    num_envs=options.environments,
    vectorization_mode="vector_entry_point",
    coordinates="object",
    sequences=options.sequences,
    device=options.device,
)
torch.manual_seed(0)
policy = torch.nn.Linear(5, 5).to(options.device)
torch.nn.init.zeros_(policy.weight)  # at first the policy is the posterior's mean
torch.nn.init.zeros_(policy.bias)
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
state, _ = environment.reset(seed=0)
average = 0.0
for step in range(1, options.steps + 1):
    residual = state["mask_residual"].clone()
    mean = policy(residual)
    draw = mean.detach() + options.sigma * torch.randn_like(mean)  # (N, 5), whitened
    factor = gaussian.unpack_lower(state["prior_cholesky"])
    state, reward, *_ = environment.step(gaussian.unwhiten(draw, state["prior_mean"], factor))
    log_density = -((draw - mean) / options.sigma).square().sum(dim=1) / 2
    loss = -((reward - reward.mean()) * log_density).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    average += (reward.mean().item() - average) / min(step, 50)
    if step % 50 == 0:
        shares = policy.weight.diagonal().tolist()
        print(
            f"step {step}: IoU {average:.3f}, share of the mask's motion",
            *map("{:.2f}".format, shares),
        )
