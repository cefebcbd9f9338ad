/**
 * A secondary on qcow2 images that dies in a stage, in a way. Takes its orders as lines on standard
 * input and answers each with a line; what it is to do is the JSON of its one argument.
 */
import { writeSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { BlockError, createSecondary } from '../../dist/src/index.js'

const { folder, stage, way, sector, crashConsistent } = JSON.parse(process.argv[2])
const say = (line) => writeSync(1, `${line}\n`)
const image = (name) => ({ file: `${folder}/${name}`, format: 'qcow2' })

/** The merge of the guest's data fails there. */
const broken = {
  driver: 'blkdebug',
  image: { driver: 'qcow2', file: { driver: 'file', filename: `${folder}/local` } },
  'inject-error': [{ event: 'none', iotype: 'write', errno: 5, sector }],
}
const secondary = await createSecondary({
  disk: stage === 'failover-failed' ? broken : image('local'),
  active: image('active'),
  hidden: image('hidden'),
  crashConsistent,
  exportAt: { type: 'unix', path: `${folder}/nbd` },
})
const pending = []

async function reach() {
  const { replication, graph } = secondary.runtime
  if (stage === 'interrupted') {
    graph.lookup(undefined, 'hidden').needDriver().makeEmpty = () => {
      throw new BlockError('EIO', 'broken on purpose')
    }
    await secondary.checkpoint().catch(() => undefined)
  } else if (stage === 'failover') await replication.stopAll(true)
  else if (stage === 'failover-failed') await secondary.failover().catch(() => undefined)
  else if (stage === 'failed over') await secondary.failover()
  else if (stage === 'stopped') await secondary.stop()
  else if (stage === 'checkpointing') pending.push(secondary.checkpoint())
}

function die() {
  // What is under way when it dies; none of it may keep the process, or be left without an end.
  const write = async () => secondary.backend.pwrite(3 << 20, Buffer.alloc(512))
  pending.push(write(), secondary.checkpoint())
  for (const each of pending) each.catch(() => undefined)
  if (way === 'process.exit') process.exit(7)
  process.kill(process.pid, way)
}

process.on('SIGTERM', async () => {
  await secondary.close()
  await Promise.allSettled(pending)
  say('settled')
  process.exit(0)
})

say('ready')
for await (const order of createInterface({ input: process.stdin })) {
  if (order === 'checkpoint') await secondary.checkpoint()
  if (order === 'write') {
    await secondary.backend.pwrite(2 << 20, Buffer.alloc(1 << 20, 0x33))
    await secondary.backend.flush()
  }
  if (order === 'die') {
    await reach()
    say(secondary.status().stage)
    die()
  } else say(order)
}
