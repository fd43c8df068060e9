// A BullMQ application: what its jobs are given goes to the file RECORD, one JSON object a line.
//
//     node bullmq_app.js VERSION THREADS QUEUE...

const { appendFileSync } = require('fs');
const [package, threads, ...queues] = process.argv.slice(2);
const { Worker } = require(package);
const Redis = require('ioredis');

const connection = new Redis(process.env.BROKER_URL, { maxRetriesPerRequest: null });

async function run(job) {
  const { name, id, data, opts, attemptsMade, queueName } = job;
  const line = { name, id, data, opts, attemptsMade, queue: queueName };
  appendFileSync(process.env.RECORD, JSON.stringify(line) + '\n');
  if (name === 'flaky' && attemptsMade < 2) throw new Error('not yet');
}

const workers = queues.map(
  (queue) => new Worker(queue, run, { connection, concurrency: Number(threads), prefix: process.env.PREFIX || 'bull' }),
);
Promise.all(workers.map((worker) => worker.waitUntilReady())).then(() => console.log('ready'));
