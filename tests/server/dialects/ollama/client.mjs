// A conversation by the `ollama` package from npm; prints what it read as one JSON object.
import { Ollama } from 'ollama'

const ollama = new Ollama({ host: process.env.URL })
const model = process.env.MODEL
const messages = [{ role: 'user', content: 'What is 2+2?' }]
const options = { temperature: 0, num_predict: 16 }

const whole = await ollama.chat({ model, messages, options })
let streamed = ''
let last
for await (const part of await ollama.chat({ model, messages, options, stream: true })) {
  streamed += part.message.content
  last = part
}
const talk = [...messages, whole.message, { role: 'user', content: 'And 3+3?' }]
const second = await ollama.chat({ model, messages: talk, options })
const generated = await ollama.generate({ model, prompt: messages[0].content, options })

let left = 0
try {
  const counting = { prompt: '1 2 3 4 5 6 7 8', raw: true, options: { temperature: 0, num_predict: 400 } }
  for await (const part of await ollama.generate({ model, ...counting, stream: true })) {
    left += 1
    if (left === 2) ollama.abort()
  }
} catch (error) {
  left = error.name
}

const stopped = await ollama.chat({ model, messages, options: { ...options, stop: ['classic'] } })
const overlong = [{ role: 'user', content: 'one two three four '.repeat(200) }]

const errors = []
for (const body of [{ model: 'absent', messages }, { model, messages, format: 'json' }, { model, messages: overlong }]) {
  try {
    await ollama.chat(body)
  } catch (error) {
    errors.push([error.status_code, error.message])
  }
}
const models = (await ollama.list()).models.map((entry) => entry.name)
console.log(JSON.stringify({
  whole: whole.message.content, streamed, generated: generated.response, done: last.done_reason, left, errors, models,
  counts: [whole.prompt_eval_count, second.prompt_eval_count], said_then: second.message.content,
  stopped: [stopped.done_reason, stopped.message.content],
}))
