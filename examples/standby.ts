import { Runtime } from '../src/index.ts'

const size = 64 * 1024 * 1024
await using standby = await Runtime.create()
const local = { driver: 'memory', 'node-name': 'local', size }
const hidden = { driver: 'memory', 'node-name': 'hidden', size, backing: 'local' }
const active = { driver: 'memory', 'node-name': 'active', size, backing: hidden }
await standby.addNode(local)
await standby.addNode({
  driver: 'replication',
  'node-name': 'top',
  mode: 'secondary',
  'top-id': 'top',
  file: active,
})
await using replica = await standby.openBackend('local') // what the primary sends arrives here
await using guest = await standby.openBackend('top') // what our own guest sees
await standby.replication.startAll('secondary')

await replica.pwrite(0, Buffer.from('from the primary'))
await standby.replication.checkpointAll()
await replica.pwrite(0, Buffer.from('never checkpointed'))
await standby.replication.stopAll(true)

const seen = Buffer.alloc(16)
await guest.pread(0, seen)
console.log(seen.toString()) // from the primary
