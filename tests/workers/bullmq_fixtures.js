// Captures what BullMQ itself writes: node bullmq_fixtures.js PACKAGE redis://... FOLDER, with an empty private server.

const { writeFileSync } = require('fs');
const { join } = require('path');
const [package, url, folder] = process.argv.slice(2);
const { Queue } = require(package);
const Redis = require('ioredis');

const CASES = {
  '01_data': ['work', { who: 'Łódź ☃', n: { a: [1, null, true] } }, {}],
  '02_options': [
    'work',
    {},
    {
      attempts: 3,
      backoff: { type: 'exponential', delay: 1000 },
      removeOnComplete: true,
      removeOnFail: { count: 5 },
      stackTraceLimit: 3,
    },
  ],
  '03_priority': ['work', {}, { priority: 5 }],
  '04_last_in': ['work', {}, { lifo: true }],
  '05_own_option': ['work', [1], { trace_id: 'abc' }],
  '06_paused': ['work', {}, {}],
};

async function value(connection, key) {
  switch (await connection.type(key)) {
    case 'hash':
      return connection.hgetall(key);
    case 'list':
      return connection.lrange(key, 0, -1);
    case 'zset':
      return connection.zrange(key, 0, -1, 'WITHSCORES');
    case 'stream':
      return (await connection.xrange(key, '-', '+')).map(([, fields]) => fields);
    default:
      return connection.get(key);
  }
}

(async () => {
  const connection = new Redis(url, { maxRetriesPerRequest: null });
  for (const [name, [task, data, opts]] of Object.entries(CASES)) {
    await connection.flushall();
    const queue = new Queue('default', { connection });
    if (name.endsWith('paused')) await queue.pause();
    await queue.add(task, data, { jobId: 'an-id', attempts: 1, ...opts });
    const keys = {};
    for (const key of (await connection.keys('*')).sort()) keys[key] = await value(connection, key);
    const found = { case: name, version: (await connection.hget('bull:default:meta', 'version')), keys };
    writeFileSync(join(folder, `${name}_${package}.json`), JSON.stringify(found, null, 1) + '\n');
  }
  process.exit(0);
})();
