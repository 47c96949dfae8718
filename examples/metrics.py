"""Times of each request, and counters and histograms of the engine.

python examples/metrics.py
"""

from tuili import LLM, SamplingParams
from tuili.runtime.metrics import Counter, Gauge, Histogram

llm = LLM(model="smollm2:135m", max_model_len=2048, disable_log_stats=False)
outputs = llm.generate(["One, two,", "Red, green,"], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)

for output in outputs:
    metrics = output.metrics
    decode_s = metrics.last_token_ts - metrics.first_token_ts
    print(f"first token after {metrics.first_token_latency:.3f} s, the others in {decode_s:.3f} s")

for metric in llm.get_metrics():
    if isinstance(metric, Gauge | Counter):
        print(f"{metric.name} = {metric.value:g}")
    elif isinstance(metric, Histogram) and metric.count:
        print(f"{metric.name}: {metric.count} values, mean {metric.sum / metric.count:.4f} s")
llm.close()
