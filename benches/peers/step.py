"""The step of benches/step.rs in PyTorch and ONNX Runtime, each beside ours, taking turns; medians in a table, and the quickest
turns beside them: on a shared machine those are the ones no neighbour took part in. Arguments: the bench, rounds, and what
a contestant's name must not contain to take part ("recomputed|compiled").

PyTorch takes part as it is, compiled, and compiled with frozen weights, which the compiler may then pack as we do. Positions are
left out of the peers' steps: they do a little less than ours. All weights are random."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

LAYERS, WIDTH, FFN = 12, 768, 3072
HEADS, KV_HEADS, HEAD = 12, 4, 64
GROUP = HEADS // KV_HEADS
WINDOW, ROWS = 1024, 64
WEIGHTS = LAYERS * WIDTH * (2 * WIDTH + 2 * KV_HEADS * HEAD + 2 * FFN)
BYTES = {"f32": 4, "bf16": 2, "int8": 1}


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        # One product for query, key and value: the fastest form for the peer.
        self.qkv = torch.nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD)
        self.out = torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, FFN), torch.nn.Linear(FFN, WIDTH)
        self.register_buffer("k", torch.randn(KV_HEADS, WINDOW, HEAD))
        self.register_buffer("v", torch.randn(KV_HEADS, WINDOW, HEAD))

    def forward(self, x):
        rows = x.shape[0]
        q, k, v = self.qkv(self.norm1(x)).split([HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD], 1)
        # The window's oldest rows make room for the new ones.
        self.k[:, :rows] = k.view(rows, KV_HEADS, HEAD).transpose(0, 1)
        self.v[:, :rows] = v.view(rows, KV_HEADS, HEAD).transpose(0, 1)
        a = attention(fold(q), self.k, self.v)
        a = a.view(KV_HEADS, rows, GROUP, HEAD).permute(1, 0, 2, 3).reshape(rows, WIDTH)
        x = x + self.out(a)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


def fold(q):
    """Heads that share keys become rows: `[kv heads, rows * group, head]`."""
    rows = q.shape[0]
    return q.view(rows, KV_HEADS, GROUP, HEAD).transpose(0, 1).reshape(KV_HEADS, rows * GROUP, HEAD)


def attention(q, k, v):
    return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]


EAGER, COMPILED, FROZEN = "", " compiled", " frozen"


def torch_step(dtype, rows, how):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[Layer() for _ in range(LAYERS)]).to(dtype).eval()
    x = torch.randn(rows, WIDTH).to(dtype)
    call = model if how == EAGER else torch.compile(model)
    # Weights are frozen where gradients are off, but not in inference mode.
    mode = torch.no_grad if how == FROZEN else torch.inference_mode
    # The first call compiles.
    settings = [inductor.patch(freezing=how == FROZEN)]

    def step():
        with settings.pop() if settings else contextlib.nullcontext(), mode():
            call(x)

    return step


def torch_attention(dtype):
    q, k, v = (torch.randn(KV_HEADS, n, HEAD).to(dtype) for n in (ROWS * GROUP, WINDOW, WINDOW))

    def step():
        with torch.inference_mode():
            attention(q, k, v)

    return step


def onnx_model(rows):
    nodes, weights, inputs = [], [], []
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        value = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        weights.append(numpy_helper.from_array(value, name))
        return name

    def constant(name, value):
        weights.append(numpy_helper.from_array(np.array(value), name))
        return name

    def node(op, args, **attributes):
        name = f"n{len(nodes)}"
        nodes.append(helper.make_node(op, args, [name], name, **attributes))
        return name

    heads = constant("heads", np.array([rows, KV_HEADS, GROUP, HEAD], np.int64))
    folded = constant("folded", np.array([KV_HEADS, rows * GROUP, HEAD], np.int64))
    split = constant("split", np.array([KV_HEADS, rows, GROUP, HEAD], np.int64))
    flat = constant("flat", np.array([rows, WIDTH], np.int64))
    keys = constant("keys", np.array([rows, KV_HEADS, HEAD], np.int64))
    scale = constant("scale", np.float32(HEAD**-0.5))
    ones, zeros = constant("ones", np.ones(WIDTH, np.float32)), constant("zeros", np.zeros(WIDTH, np.float32))
    x = "x"
    for i in range(LAYERS):
        h = node("LayerNormalization", [x, ones, zeros])
        q = node("MatMul", [h, weight(f"q{i}", WIDTH, WIDTH)])
        q = node("Transpose", [node("Reshape", [q, heads])], perm=[1, 0, 2, 3])
        q = node("Mul", [node("Reshape", [q, folded]), scale])
        window = []
        for part in "kv":
            new = node("MatMul", [h, weight(f"{part}{i}", WIDTH, KV_HEADS * HEAD)])
            new = node("Transpose", [node("Reshape", [new, keys])], perm=[1, 0, 2])
            past = f"past_{part}{i}"
            inputs.append(helper.make_tensor_value_info(past, TensorProto.FLOAT, [KV_HEADS, WINDOW - rows, HEAD]))
            window.append(node("Concat", [past, new], axis=1))
        scores = node("MatMul", [q, node("Transpose", [window[0]], perm=[0, 2, 1])])
        a = node("MatMul", [node("Softmax", [scores], axis=-1), window[1]])
        a = node("Transpose", [node("Reshape", [a, split])], perm=[1, 0, 2, 3])
        a = node("MatMul", [node("Reshape", [a, flat]), weight(f"o{i}", WIDTH, WIDTH)])
        x = node("Add", [x, a])
        h = node("LayerNormalization", [x, ones, zeros])
        h = node("Gelu", [node("MatMul", [h, weight(f"u{i}", WIDTH, FFN)])], approximate="tanh")
        x = node("Add", [x, node("MatMul", [h, weight(f"d{i}", FFN, WIDTH)])])
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, WIDTH])
    graph = helper.make_graph(nodes, "step", [value("x"), *inputs], [value(x)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def onnx_steps(rows, folder):
    paths = [os.path.join(folder, f"{name}{rows}.onnx") for name in ("f32", "int8")]
    onnx.save(onnx_model(rows), paths[0])
    quantize_dynamic(paths[0], paths[1], weight_type=QuantType.QInt8, per_channel=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    rng = np.random.default_rng(1)
    steps = []
    for path in paths:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
        steps.append(lambda session=session, feed=feed: session.run(None, feed))
    return steps


class Ours:
    """benches/step.rs, answering on a pipe."""

    def __init__(self, bench, threads):
        command = [bench, "--serve", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self.process.stdout.readline().strip()

    def step(self, precision, rows):
        """Milliseconds of the linear layers, the attention and the rest."""
        return self.ask(f"{precision} {rows}")

    def read(self, precision):
        """Milliseconds to read as many bytes of memory as the weights of a precision have."""
        return self.ask(f"read {WEIGHTS * BYTES[precision] >> 20}")[0]

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return [float(us) / 1e3 for us in self.process.stdout.readline().split()]


def timed(step):
    def run():
        start = time.perf_counter()
        step()
        return (time.perf_counter() - start) * 1e3

    return run


def contestants(bench, folder):
    """`name -> call that returns its milliseconds`, peers first; ours, where they go: linear layers, attention, the rest."""
    table = {}
    for rows in (ROWS, 4):
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            for how in (EAGER, COMPILED, FROZEN):
                table[f"PyTorch {name}{how}, {rows} rows"] = timed(torch_step(dtype, rows, how))
        for name, step in zip(("f32", "int8"), onnx_steps(rows, folder)):
            table[f"ONNX Runtime {name}, {rows} rows"] = timed(step)
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        table[f"PyTorch SDPA {name}, a layer"] = timed(torch_attention(dtype))
        for how in (EAGER, FROZEN):
            table[f"PyTorch {name}{how}, window recomputed"] = timed(torch_step(dtype, WINDOW, how))
    one, two = Ours(bench, 1), Ours(bench, 2)
    print(f"ours: {one.name}")
    for precision in ("f32", "bf16", "int8"):
        for rows in (ROWS, 4):
            table[f"umm {precision}, {rows} rows"] = lambda p=precision, r=rows: one.step(p, r)
        table[f"umm {precision}, {ROWS} rows, 2 threads"] = lambda p=precision: two.step(p, ROWS)
        table[f"reading the {precision} weights"] = lambda p=precision: one.read(p)
        table[f"umm linear layers {precision}, 4 rows"] = lambda p=precision: one.step(p, 4)[0]
    for precision in ("f32", "bf16"):
        attention = lambda p=precision: one.step(p, ROWS)[1] / LAYERS
        table[f"umm attention {precision}, a layer"] = attention
    return table


def torch_steps(dtype, rows):
    return [f"PyTorch {dtype}{how}, {rows} rows" for how in (EAGER, COMPILED, FROZEN)]


RATIOS = [
    (f"umm int8, {ROWS} rows", [f"ONNX Runtime int8, {ROWS} rows", *torch_steps("bf16", ROWS)], "1/3"),
    (f"umm bf16, {ROWS} rows", torch_steps("bf16", ROWS), "1/2"),
    (f"umm f32, {ROWS} rows", [f"ONNX Runtime f32, {ROWS} rows", *torch_steps("f32", ROWS)], "0.9"),
    ("umm attention f32, a layer", ["PyTorch SDPA f32, a layer"], "0.7"),
    ("umm attention bf16, a layer", ["PyTorch SDPA bf16, a layer"], "0.7"),
    (f"umm int8, {ROWS} rows", [f"PyTorch {name}{how}, window recomputed" for name in ("f32", "bf16") for how in (EAGER, FROZEN)], "1/25"),
    *[(f"umm {name}, {ROWS} rows, 2 threads", [f"umm {name}, {ROWS} rows"], "1/1.7") for name in BYTES],
    ("umm int8, 4 rows", ["ONNX Runtime int8, 4 rows", *torch_steps("bf16", 4)], ""),
    ("umm bf16, 4 rows", torch_steps("bf16", 4), ""),
    ("umm f32, 4 rows", ["ONNX Runtime f32, 4 rows", *torch_steps("f32", 4)], ""),
    *[(f"umm linear layers {name}, 4 rows", [f"reading the {name} weights"], "1/0.6") for name in BYTES],
]


def quickest_cores(count):
    """Of those this process may use, at a small product: neighbours differ from core to core."""
    a = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    times = {}
    for core in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {core})
        taken = []
        for _ in range(60):
            begun = time.perf_counter()
            a @ a
            taken.append(time.perf_counter() - begun)
        times[core] = statistics.median(taken)
    return sorted(times, key=times.get)[:count]


def say_machine():
    lines = open("/proc/cpuinfo").read().splitlines()
    value = lambda name: next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
    flags = (value("flags") or value("Features")).split()
    print(f"torch {torch.__version__}, onnxruntime {ort.__version__};", *[f for f in wanted if f in flags])
    print(f"{value('model name')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f};", end=" ")
    cores = quickest_cores(2)
    os.sched_setaffinity(0, cores)
    print("on cores", *cores)


def main():
    torch.set_num_threads(1)
    # One compilation for each contestant; beyond the limit calls would silently not be compiled.
    torch._dynamo.config.recompile_limit = 64
    say_machine()
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 15
    without = sys.argv[3].split("|") if len(sys.argv) > 3 else []
    with tempfile.TemporaryDirectory() as folder:
        table = contestants(sys.argv[1], folder)
        table = {name: run for name, run in table.items() if not any(part in name for part in without)}
        times, parts = {name: [] for name in table}, {}
        for name in list(table):
            try:
                table[name]()
            except Exception as error:  # a peer that cannot run here, such as torch.compile without a compiler
                print(f"left out: {name}: {str(error).splitlines()[0][:100]}")
                del table[name]
        for round_ in range(rounds):
            for name, run in table.items():
                # Recomputing takes seconds: a few times are enough.
                if "recomputed" not in name or round_ < 3:
                    taken = run()
                    if isinstance(taken, list):
                        parts.setdefault(name, []).append(taken)
                        taken = sum(taken)
                    times[name].append(taken)
    medians = {name: statistics.median(t) for name, t in times.items() if t}
    least = {name: min(t) for name, t in times.items() if t}
    print("\n| ms, of rounds that take turns | median | least |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {least[name]:.2f} |")
    print("\n| medians of ours, ms | linear | attention | rest |\n|---|---|---|---|")
    for name, taken in parts.items():
        print(f"| {name} |", " | ".join(f"{statistics.median(part):.2f}" for part in zip(*taken)), "|")
    print("\n| ours | against the best of its peers | ratio of medians | of the quickest | target |\n|---|---|---|---|---|")
    for ours, peers, target in RATIOS:
        peers = [p for p in peers if p in medians]
        if peers and ours in medians:
            best = min(peers, key=medians.get)
            print(f"| {ours} | {best} | {medians[ours] / medians[best]:.3f} | {least[ours] / least[best]:.3f} | {target} |")


if __name__ == "__main__":
    main()
