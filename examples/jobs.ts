import { Runtime, startBackup, startCommit, startMirror, startStream } from '../src/index.ts'

const memory = { driver: 'memory', size: 64 * 1024 * 1024 }

await using runtime = await Runtime.create()
await runtime.addNode({ ...memory, 'node-name': 'base' })
await runtime.addNode({ ...memory, 'node-name': 'disk', backing: 'base' })
for (const name of ['saved', 'twin']) await runtime.addNode({ ...memory, 'node-name': name })
const guest = await runtime.openBackend('disk')
await guest.pwrite(0, Buffer.from('monday'))

// A backup keeps the moment it began, whatever the guest writes meanwhile.
const backup = await startBackup(runtime, { source: 'disk', target: 'saved' })
await guest.pwrite(0, Buffer.from('friday'))
await backup.done
console.log('saved holds', await textOf('saved'))

// A mirror keeps up with the guest until it is told to stop; half a minute is enough here.
const signal = AbortSignal.timeout(30_000)
const mirror = await startMirror(runtime, { source: 'disk', target: 'twin', signal })
await mirror.ready
await guest.pwrite(0, Buffer.from('sunday'))
await mirror.cancel() // in order: the twin is equal now
console.log('twin holds', await textOf('twin'))

// A stream makes a disk need nothing below it.
await runtime.addNode({ ...memory, 'node-name': 'copy', backing: 'saved' })
const stream = await startStream(runtime, { top: 'copy', speed: 256 * 1024 * 1024 })
await stream.done
console.log('copy has', runtime.graph.lookup('copy').chainNext?.name ?? 'nothing', 'below it')

// A commit folds the disk into its base and moves the guest there.
const commit = await startCommit(runtime, { top: 'disk', autoComplete: true })
await commit.done
console.log('the guest is on', guest.node.name)
await guest.close()

async function textOf(node: string): Promise<string> {
  const disk = await runtime.openBackend(node)
  const text = Buffer.alloc(6)
  await disk.pread(0, text)
  await disk.close()
  return text.toString()
}
