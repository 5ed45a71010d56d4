'use strict';
// Calls a tickring server from Node: one unary call, then many requests over one RPC stream.

const { readFileSync } = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const USAGE = `usage: node client.js [OPTION]...
Sends one unary call, then requests over one RPC stream, to a tickring server; prints a prediction of each
and how long the answers took.

  --target TARGET        the server: HOST:PORT, or any target name of gRPC (127.0.0.1:8001)
  --count N              requests to stream (200)
  --in-flight N          of them sent and not answered, at most (16)
  --priority CLASS       real_time_trading (where absent), market_data_update, batch_processing,
                         historical_analysis or background_tasks
  --timeout SECONDS      of each request (1)
  --window FILE          one window as little-endian float32 without a header; a random one where absent
  --service-config FILE  gRPC service config: balancing and retries
  --json                 print everything as one line of JSON

Exit codes: 0 every request was answered with a prediction, 1 some were not, 2 misuse.`;

const CLASSES = [
  'real_time_trading', 'market_data_update', 'batch_processing', 'historical_analysis', 'background_tasks',
];
const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;
// The server says DEADLINE_EXCEEDED at the deadline. Without a word for this much longer, it is not there.
const GRACE_MS = 1000;
const VALUES_SHOWN = 6;

const definition = protoLoader.loadSync(
  ['tickring/v1/inference.proto', 'tickring/v1/model.proto', 'google/rpc/error_details.proto'],
  {
    includeDirs: [path.join(__dirname, '../../proto'), path.join(__dirname, '../protos')],
    keepCase: true, // names as in the protos
    longs: Number,
    enums: String,
    defaults: true,
    oneofs: true, // which of them is set, by the name of the oneof
  },
);
const tickring = grpc.loadPackageDefinition(definition).tickring.v1;

class Misuse extends Error {}

// A request that ended without a prediction: a code by its name, and what google.rpc's details say.
class Failure extends Error {
  constructor(code, message, details = []) {
    super(message);
    this.code = grpc.status[code] ?? `code ${code}`;
    this.reason = unpack(details, 'google.rpc.ErrorInfo')?.reason ?? '';
    this.field = unpack(details, 'google.rpc.BadRequest')?.field_violations[0]?.field ?? '';
  }

  toString() {
    return `${this.label}: ${this.message.replace(/\s+/g, ' ').trim()}`;
  }

  get label() {
    return [this.code, this.reason].filter(Boolean).join(' ');
  }
}

// The first of the details that is of this type, if there is one.
function unpack(details, type) {
  const packed = details.find((detail) => detail.type_url.endsWith(`/${type}`));
  return packed && definition[type].deserialize(packed.value);
}

// A unary call has its details in a trailer, as a serialised google.rpc.Status.
function failureOfCall(error) {
  const [trailer] = error.metadata?.get('grpc-status-details-bin') ?? [];
  const status = trailer && definition['google.rpc.Status'].deserialize(trailer);
  return new Failure(error.code, error.details ?? error.message, status?.details);
}

function parseOptions(args) {
  let values;
  try {
    const text = (fallback) => ({ type: 'string', default: fallback });
    ({ values } = parseArgs({
      args,
      options: {
        target: text('127.0.0.1:8001'), count: text('200'), 'in-flight': text('16'),
        priority: text('real_time_trading'), timeout: text('1'), window: text(''), 'service-config': text(''),
        json: { type: 'boolean' }, help: { type: 'boolean' },
      },
    }));
  } catch (error) {
    throw new Misuse(error.message);
  }
  const number = (name, least, most) => {
    const value = values[name].trim() === '' ? NaN : Number(values[name]);
    if (value >= least && value <= most) return value;
    throw new Misuse(`--${name} is '${values[name]}'; allowed: ${least} to ${most}`);
  };
  const whole = (name) => {
    const value = number(name, 1, 1e9);
    if (Number.isInteger(value)) return value;
    throw new Misuse(`--${name} is '${values[name]}'; must be a whole number`);
  };
  if (!CLASSES.includes(values.priority)) {
    throw new Misuse(`--priority is '${values.priority}'; allowed: ${CLASSES.join(', ')}`);
  }
  return {
    ...values,
    count: whole('count'),
    inFlight: whole('in-flight'),
    timeoutMs: number('timeout', 0.000001, 86400) * 1000,
    priority: `PRIORITY_${values.priority.toUpperCase()}`,
  };
}

function readFile(option, file) {
  try {
    return readFileSync(file);
  } catch (error) {
    throw new Misuse(`--${option}: ${error.message}`);
  }
}

function channelOptions(options) {
  return {
    'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
    ...(options['service-config'] && {
      'grpc.service_config': readFile('service-config', options['service-config']).toString(),
    }),
  };
}

// Calls one unary RPC; rejects with a Failure.
function call(client, method, request, timeoutMs) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: Date.now() + timeoutMs }, (error, response) => {
      if (error) reject(failureOfCall(error));
      else resolve(response);
    });
  });
}

// The bytes of one window: those of --window, or random ones.
function windowBytes(options, input) {
  const elements = input.shape.reduce((product, size) => product * size, 1);
  if (options.window) {
    const bytes = readFile('window', options.window);
    if (bytes.length === elements * 4) return bytes;
    throw new Misuse(`--window: '${options.window}' has ${bytes.length} bytes; must be ${elements * 4}`);
  }
  const bytes = Buffer.alloc(elements * 4);
  for (let i = 0; i < elements; i++) bytes.writeFloatLE(Math.random() * 2 - 1, i * 4);
  return bytes;
}

function makeRequest(options, input) {
  const data = windowBytes(options, input);
  const wholeS = Math.floor(options.timeoutMs / 1000);
  return {
    priority: options.priority,
    timeout: { seconds: wholeS, nanos: Math.floor((options.timeoutMs - wholeS * 1000) * 1e6) },
    inputs: [{ name: input.name, data_type: input.data_type, shape: [1, ...input.shape], data }],
  };
}

// Outputs by name, as arrays of numbers.
function outputsOf(response) {
  const floats = (data) => Array.from({ length: data.length / 4 }, (_, i) => data.readFloatLE(i * 4));
  const known = response.outputs.filter((tensor) => tensor.data_type === 'DATA_TYPE_FP32');
  return Object.fromEntries(known.map((tensor) => [tensor.name, floats(tensor.data)]));
}

// Sends `count` requests over one RPC stream; calls `ended(result, ms)` once for each that was sent, with its
// response or its Failure. Resolves when the stream is over.
function stream(client, request, options, ended) {
  return new Promise((resolve) => {
    const rpc = client.PredictStream();
    const open = new Map(); // by sequence: when it was sent
    let sent = 0;

    const end = (sequence, result) => {
      const startMs = open.get(sequence);
      if (startMs !== undefined && open.delete(sequence)) ended(result, performance.now() - startMs);
    };
    const send = () => {
      while (sent < options.count && open.size < options.inFlight) {
        sent += 1;
        open.set(sent, performance.now());
        rpc.write({ sequence: sent, request });
      }
      if (sent === options.count && open.size === 0) rpc.end();
    };
    let silent = false;
    // Every answer starts it again. All come within the timeout, so silence means that nobody is there.
    const watchdog = setTimeout(() => {
      silent = true;
      rpc.cancel();
    }, options.timeoutMs + GRACE_MS);

    rpc.on('data', (answer) => {
      watchdog.refresh();
      const failed = answer.result === 'error';
      end(answer.sequence, failed
        ? new Failure(answer.error.code, answer.error.message, answer.error.details)
        : answer.response);
      send();
    });
    rpc.on('error', () => {}); // 'status' says the same, of a stream that ended well too
    rpc.on('status', (status) => {
      clearTimeout(watchdog);
      const lost = silent
        ? new Failure(grpc.status.DEADLINE_EXCEEDED, 'the server did not answer in time')
        : failureOfCall(status);
      for (const sequence of open.keys()) end(sequence, lost);
      resolve();
    });
    send();
  });
}

// Milliseconds that a share of the sorted samples does not exceed.
const quantile = (sorted, share) => sorted[Math.max(Math.ceil(share * sorted.length), 1) - 1];

async function run(options) {
  const credentials = grpc.credentials.createInsecure();
  const inference = new tickring.InferenceService(options.target, credentials, channelOptions(options));
  const sameChannel = { channelOverride: inference.getChannel() };
  const models = new tickring.ModelService(options.target, credentials, sameChannel);
  const report = { ok: 0, requests: options.count + 1, results: {} };
  const latencies = {}; // by method and status
  const ended = (method) => (result, ms) => {
    const failed = result instanceof Failure;
    (latencies[`${method} ${failed ? result.label : 'OK'}`] ??= []).push(ms);
    if (failed) {
      report.firstFailure ??= result;
    } else {
      report.ok += 1;
      report[method] ??= outputsOf(result);
    }
  };

  try {
    const { model } = await call(models, 'GetModel', {}, 10_000);
    const [input] = model.inputs;
    if (model.inputs.length !== 1 || input.data_type !== 'DATA_TYPE_FP32') {
      throw new Misuse(`the default model, ${model.name}, has other inputs than a single one of FP32`);
    }
    const request = makeRequest(options, input);
    const startMs = performance.now();
    const response = await call(inference, 'Predict', request, options.timeoutMs).catch((error) => error);
    ended('Predict')(response, performance.now() - startMs);
    await stream(inference, request, options, ended('PredictStream'));
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    report.firstFailure ??= error;
  } finally {
    inference.close();
  }
  for (const [key, ms] of Object.entries(latencies)) {
    ms.sort((a, b) => a - b);
    const [p50, p99] = [0.5, 0.99].map((share) => quantile(ms, share));
    report.results[key] = { count: ms.length, p50, p99, max: ms.at(-1) };
  }
  return report;
}

function print(report) {
  for (const [name, values] of Object.entries(report.PredictStream ?? report.Predict ?? {})) {
    const shown = values.slice(0, VALUES_SHOWN).map((value) => value.toPrecision(6)).join(' ');
    console.log(`${name.padEnd(24)} ${shown}${values.length > VALUES_SHOWN ? ' ...' : ''}`);
  }
  console.log(`${report.ok} of ${report.requests} requests answered, after ms:`);
  const row = (name, ...cells) => name.padEnd(48) + cells.map((cell) => String(cell).padStart(9)).join('');
  console.log(row('RPC and status', 'count', 'p50', 'p99', 'max'));
  for (const [key, { count, p50, p99, max }] of Object.entries(report.results)) {
    console.log(row(key, count, ...[p50, p99, max].map((ms) => ms.toFixed(2))));
  }
}

async function main(args) {
  try {
    const options = parseOptions(args);
    if (options.help) {
      console.log(USAGE);
      return 0;
    }
    const report = await run(options);
    if (options.json) console.log(JSON.stringify({ ...report, firstFailure: report.firstFailure?.toString() }));
    else print(report);
    if (report.ok === report.requests) return 0;
    const missing = report.requests - report.ok;
    console.error(
      `client.js: ${missing} of ${report.requests} requests got no prediction; the first: ${report.firstFailure}`,
    );
    return 1;
  } catch (error) {
    if (!(error instanceof Misuse)) throw error;
    console.error(`client.js: ${error.message.split('\n')[0]}`);
    return 2;
  }
}

main(process.argv.slice(2)).then((code) => {
  process.exitCode = code;
});
