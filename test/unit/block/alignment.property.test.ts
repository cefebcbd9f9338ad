import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { BlockBackend } from '../../../src/block/backend.ts'
import { FLAG } from '../../../src/block/driver.ts'
import { ioError } from '../../../src/util/errors.ts'
import { guest, memoryGraph } from '../../support/graph.ts'
import { TestDisk } from '../../support/test-disk.ts'

const BYTES = 8192

const limits = fc.record({
  requestAlignment: fc.constantFrom(1, 16, 512, 4096),
  maxTransfer: fc.constantFrom(0, 4096, 8192),
  maxZeroes: fc.constantFrom(0, 4096),
  zeroesAlignment: fc.constantFrom(0, 1024, 4096),
  zeroes: fc.constantFrom('none' as const, 'yes' as const, 'refuse' as const),
})

const range = fc
  .tuple(fc.integer({ min: 0, max: BYTES }), fc.integer({ min: 0, max: BYTES }))
  .map(([a, b]) => ({ offset: Math.min(a, b), bytes: Math.abs(a - b) }))

const request = fc.record({
  kind: fc.constantFrom('write' as const, 'zeroes' as const, 'read' as const),
  range,
  value: fc.integer({ min: 1, max: 255 }),
  serialising: fc.boolean(),
  /** The next read of the disk fails, whoever it is for. */
  failRead: fc.boolean(),
})

type Limits = typeof limits extends fc.Arbitrary<infer T> ? T : never
type Request = typeof request extends fc.Arbitrary<infer T> ? T : never

/** A disk with these limits, its user, and the same bytes kept plainly. */
async function world(given: Limits): Promise<{
  disk: TestDisk
  user: BlockBackend
  model: Uint8Array
}> {
  const { zeroes, ...rest } = given
  const disk = new TestDisk(BYTES, rest)
  disk.zeroes = zeroes
  for (let at = 0; at < BYTES; at++) disk.data[at] = (at * 7) & 0xff
  const node = await memoryGraph(disk.definition).add({ driver: 'test', 'node-name': 't' })
  const user = await guest(node.graph, node)
  return { disk, user, model: disk.data.slice() }
}

async function send(user: BlockBackend, { kind, range: at, value, serialising }: Request) {
  const flags = serialising ? FLAG.SERIALISING : 0
  const buf = new Uint8Array(at.bytes).fill(value)
  if (kind === 'write') await user.pwrite(at.offset, buf, flags)
  else if (kind === 'zeroes') await user.pwriteZeroes(at.offset, at.bytes, flags)
  else await user.pread(at.offset, buf)
  return buf
}

function play(model: Uint8Array, { kind, range: at, value }: Request): void {
  if (kind !== 'read') model.fill(kind === 'write' ? value : 0, at.offset, at.offset + at.bytes)
}

/** Bytes that differ, outside of a range. */
function differences(a: Uint8Array, b: Uint8Array, except = { offset: 0, bytes: 0 }): number[] {
  const wrong: number[] = []
  for (let at = 0; at < a.length; at++) {
    if (at >= except.offset && at < except.offset + except.bytes) continue
    if (a[at] !== b[at]) wrong.push(at)
  }
  return wrong
}

/** The disk saw only whole blocks, and no more of them at once than it takes. */
function checkShape(disk: TestDisk, { requestAlignment, maxTransfer, maxZeroes }: Limits): void {
  for (const [op, offset, bytes] of disk.log) {
    if (op.startsWith('flush')) continue
    expect(offset % requestAlignment, `${op} at ${offset}`).toBe(0)
    expect(bytes % requestAlignment, `${op} of ${bytes}`).toBe(0)
    const most = op === 'zeroes' ? maxZeroes : maxTransfer
    if (most !== 0) expect(bytes, op).toBeLessThanOrEqual(most)
  }
}

describe('block / alignment / property', () => {
  it('block / alignment / property / any request changes and shows just its bytes, and fails when a read fails', async () => {
    let failed = 0
    let done = 0
    await fc.assert(
      fc.asyncProperty(
        limits,
        fc.array(request, { minLength: 1, maxLength: 8 }),
        async (l, all) => {
          const { disk, user, model } = await world(l)
          for (const one of all) {
            if (one.failRead) disk.failNext.set('read', ioError('EIO'))
            let got: Uint8Array | undefined
            try {
              got = await send(user, one)
              done++
            } catch (error) {
              expect(error).toMatchObject({ code: 'EIO' })
              expect(one.failRead).toBe(true)
              failed++
            }
            if (got === undefined && one.kind !== 'read') {
              // A part of what was asked may have been written; nothing else may have changed.
              expect(differences(disk.data, model, one.range)).toEqual([])
              model.set(disk.data)
              continue
            }
            // Whoever succeeded although a read was to fail has read nothing.
            if (got !== undefined) disk.failNext.delete('read')
            if (got !== undefined) play(model, one)
            expect(differences(disk.data, model)).toEqual([])
            const { offset, bytes } = one.range
            if (got !== undefined && one.kind === 'read')
              expect(differences(got, model.subarray(offset, offset + bytes))).toEqual([])
          }
          checkShape(disk, l)
          expect([user.inFlight, user.node.gate.inFlight, user.node.tracked.size]).toEqual([
            0, 0, 0,
          ])
          expect(user.node.tracked.serialising).toBe(0)
        },
      ),
      { numRuns: 300 },
    )
    expect(Math.min(failed, done)).toBeGreaterThan(50)
  })

  it('block / alignment / property / requests at once that share blocks but no byte all count', async () => {
    await fc.assert(
      fc.asyncProperty(
        limits,
        fc.uniqueArray(fc.integer({ min: 1, max: BYTES - 1 }), { minLength: 2, maxLength: 12 }),
        fc.array(request, { minLength: 13, maxLength: 13 }),
        async (l, cuts, all) => {
          const { disk, user, model } = await world(l)
          const bounds = [0, ...cuts.sort((a, b) => a - b), BYTES]
          const apart = bounds.slice(0, -1).map((offset, index): Request => {
            const bytes = (bounds[index + 1] ?? BYTES) - offset
            const base = all[index] ?? all[0]
            if (base === undefined) throw new Error('no request')
            return { ...base, range: { offset, bytes } }
          })
          const sent = await Promise.all(apart.map((one) => send(user, one)))
          for (const [index, one] of apart.entries()) {
            if (one.kind !== 'read') continue
            const { offset, bytes } = one.range
            const shown = model.subarray(offset, offset + bytes)
            expect(differences(sent[index] ?? new Uint8Array(bytes), shown)).toEqual([])
          }
          for (const one of apart) play(model, one)
          expect(differences(disk.data, model)).toEqual([])
          checkShape(disk, l)
          expect([user.node.gate.inFlight, user.node.tracked.size]).toEqual([0, 0])
        },
      ),
      { numRuns: 300 },
    )
  })
})
