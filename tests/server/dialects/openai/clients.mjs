// The npm clients `openai` and `ai` over one server: they must hear the same, streamed or not.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const { URL: baseURL, MODEL: model } = process.env;
const messages = [{ role: "user", content: "Name the capital of France." }];

const openai = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const asked = { model, messages, temperature: 0, max_tokens: 24 };
const whole = await openai.chat.completions.create(asked);
const said = whole.choices[0].message.content;
let streamed = "";
let usage = null;
for await (const chunk of await openai.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, said);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
const helper = openai.chat.completions.stream(asked);
assert.equal(await helper.finalContent(), said);
await assert.rejects(openai.chat.completions.create({ ...asked, model: "nobody" }), { status: 404, code: "model_not_found" });

const stopped = await openai.chat.completions.create({ ...asked, max_tokens: 900, ignore_eos: true, stream: true });
for await (const _ of stopped) break; // leaves in the middle

const provider = createOpenAICompatible({ name: "served", baseURL, includeUsage: true });
const prompt = { model: provider(model), messages, temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
const generated = await generateText(prompt);
assert.equal(generated.text, said);
const stream = streamText(prompt);
let parts = "";
for await (const part of stream.textStream) parts += part;
assert.equal(parts, said);
assert.equal((await stream.usage).outputTokens, whole.usage.completion_tokens);
assert.equal(await stream.finishReason, generated.finishReason);
await assert.rejects(generateText({ ...prompt, model: provider("nobody") }), { statusCode: 404 });

console.log("ok");
