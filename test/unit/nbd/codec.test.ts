import fc from 'fast-check'
import { expect, test } from 'vitest'
import {
  emptyRequest,
  errorCode,
  errorNumber,
  getRequest,
  getU64,
  putRequest,
  putU64,
} from '../../../src/nbd/codec.ts'
import { nbdUri, parseNbdUri } from '../../../src/nbd/uri.ts'

test('nbd / codec / 64-bit numbers survive up to 2^53-1 and are infinite above', () => {
  const buf = Buffer.alloc(8)
  fc.assert(
    fc.property(fc.maxSafeNat(), (value) => {
      putU64(buf, 0, value)
      expect(buf.readBigUInt64BE(0)).toBe(BigInt(value))
      expect(getU64(buf, 0)).toBe(value)
    }),
  )
  buf.writeBigUInt64BE(1n << 53n)
  expect(getU64(buf, 0)).toBe(Number.POSITIVE_INFINITY)
  buf.writeBigUInt64BE(0xffffffffffffff00n)
  expect(getU64(buf, 0)).toBe(Number.POSITIVE_INFINITY)
})

test('nbd / codec / requests round-trip at any place', () => {
  const u32 = fc.integer({ min: 0, max: 0xffffffff })
  const u16 = fc.integer({ min: 0, max: 0xffff })
  fc.assert(
    fc.property(u16, u16, u32, fc.maxSafeNat(), u32, (type, flags, cookie, offset, length) => {
      const buf = Buffer.alloc(40)
      putRequest(buf, 5, type, flags, cookie, offset, length)
      const got = emptyRequest()
      getRequest(buf, 5, got)
      const magic = 0x25609513
      expect(got).toEqual({ magic, flags, type, cookieHigh: 0, cookieLow: cookie, offset, length })
    }),
  )
})

test('nbd / codec / errors without a number become EINVAL in both directions', () => {
  expect(errorNumber('ENOSPC')).toBe(28)
  expect(errorNumber('EACCES')).toBe(22)
  expect(errorNumber('ESHUTDOWN')).toBe(108)
  expect(errorCode(108)).toBe('ESHUTDOWN')
  expect(errorCode(4711)).toBe('EINVAL')
})

test('nbd / uri / addresses round-trip', () => {
  const cases = [
    { address: { type: 'unix' as const, path: '/tmp/a b/ü%.sock' }, exportName: 'x/y z?#' },
    { address: { type: 'inet' as const, host: '127.0.0.1', port: 10810 }, exportName: '' },
    { address: { type: 'inet' as const, host: '::1', port: 10809 }, exportName: 'a' },
  ]
  for (const target of cases) {
    expect(parseNbdUri(nbdUri(target.address, target.exportName))).toEqual(target)
  }
})

test('nbd / uri / older strings are understood, nonsense is refused', () => {
  expect(parseNbdUri('nbd:unix:/x.sock:exportname=e')).toEqual({
    address: { type: 'unix', path: '/x.sock' },
    exportName: 'e',
  })
  expect(parseNbdUri('nbd:localhost:10809')).toEqual({
    address: { type: 'inet', host: 'localhost', port: 10809 },
    exportName: '',
  })
  for (const bad of ['nbd:', 'http://x', 'nbd://', 'nbd+unix:///x', 'nbd://h/%zz', 'nbd:h']) {
    expect(() => parseNbdUri(bad)).toThrow(/is not an NBD address/)
  }
})
