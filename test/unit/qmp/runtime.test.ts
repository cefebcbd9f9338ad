import { describe, expect, test } from 'vitest'
import { BlockError, Runtime } from '../../../src/index.ts'

const memory = (name: string) => ({ driver: 'memory', 'node-name': name, size: 65536 })

describe('runtime', () => {
  test('a disk is written and read, and everything closes', async () => {
    const runtime = await Runtime.create()
    await runtime.addNode(memory('a'))
    const backend = await runtime.openBackend('a')
    await backend.pwrite(512, Buffer.from('hello'))
    const seen = Buffer.alloc(5)
    await backend.pread(512, seen)
    expect(seen.toString()).toBe('hello')
    await expect(runtime.removeNode('a')).rejects.toThrow('Node a is in use')
    await backend.close()
    await runtime.removeNode('a')
    await runtime.close()
    expect(runtime.graph.nodes()).toEqual([])
  })

  test('closing twice closes once, and disposal is closing', async () => {
    const runtime = await Runtime.create()
    await runtime.addNode(memory('a'))
    await Promise.all([runtime.close(), runtime[Symbol.asyncDispose](), runtime.close()])
    expect(runtime.graph.nodes()).toEqual([])
  })

  test('a backend that was left open is closed with the rest', async () => {
    const runtime = await Runtime.create()
    await runtime.addNode(memory('a'))
    const backend = await runtime.openBackend('a')
    await runtime.close()
    expect(() => backend.length()).toThrow(BlockError)
    expect(runtime.graph.nodes()).toEqual([])
  })

  test('quit asks once and says why', async () => {
    const runtime = await Runtime.create()
    const reasons: unknown[] = []
    runtime.events.on('SHUTDOWN', (data) => reasons.push(data.reason))
    runtime.quit('host-signal')
    runtime.quit('host-qmp-quit')
    expect(await runtime.quitRequested).toBe('host-signal')
    expect(reasons).toEqual(['host-signal'])
    await runtime.close()
  })

  test('an export is served and told of at the end', async () => {
    const runtime = await Runtime.create()
    await runtime.addNode(memory('a'))
    await expect(runtime.addExport({ id: 'e', nodeName: 'a' })).rejects.toThrow(BlockError)
    await runtime.startNbdServer({ type: 'inet', host: '127.0.0.1', port: 0 })
    await runtime.addExport({ id: 'e', nodeName: 'a', writable: true })
    expect(runtime.exports.list()).toHaveLength(1)
    const deleted = runtime.events.once('BLOCK_EXPORT_DELETED')
    await runtime.close()
    expect(await deleted).toEqual({ id: 'e' })
  })

  test('a bad monitor address is refused and leaves nothing behind', async () => {
    const runtime = await Runtime.create()
    await expect(runtime.startMonitor('nonsense')).rejects.toThrow(/neither unix:PATH nor tcp/)
    await expect(runtime.startMonitor('unix:/nonexistent/x')).rejects.toThrow(/No such file/)
    await runtime.close()
  })
})
