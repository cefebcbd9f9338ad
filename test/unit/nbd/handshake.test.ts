import { expect, test } from 'vitest'
import { infoData, lengthPrefixed, metaData, optionRequest } from '../../../src/nbd/codec.ts'
import { NBD_OPT, NBD_REP } from '../../../src/nbd/constants.ts'
import type { NbdExport } from '../../../src/nbd/export.ts'
import { Handshake, type HandshakeOutcome } from '../../../src/nbd/handshake.ts'
import { BlockError } from '../../../src/util/errors.ts'
import { FakeDisk } from './fake-disk.ts'

interface Reply {
  option: number
  type: number
  data: Buffer
}

/** A handshake with its flags sent; `say` feeds an option and gives the parsed replies. */
function setup({ clientFlags = 3, closing = false, needsTls = false } = {}) {
  const disk = new FakeDisk(1 << 20)
  const bitmap = { nextDirty: () => undefined }
  const exports: NbdExport[] = [
    { name: 'a', backend: disk, readOnly: false },
    { name: '', backend: disk, readOnly: true, description: 'the quiet one' },
    {
      name: 'deep',
      backend: disk,
      readOnly: false,
      allocationDepth: true,
      bitmaps: [{ name: 'b', bitmap }],
    },
  ]
  const host = {
    closing,
    needsTls,
    multiConn: true,
    find: (name: string) => exports.find((exp) => exp.name === name),
    exports: () => exports,
  }
  let sent: Buffer[] = []
  const shake = new Handshake(host, (bytes) => void sent.push(bytes))
  const hello = Buffer.concat(sent)
  const flags = Buffer.alloc(4)
  flags.writeUInt32BE(clientFlags)
  sent = []
  const first = shake.feed(flags)
  const raw = (bytes: Buffer): { outcome: HandshakeOutcome; sent: Buffer } => {
    sent = []
    const outcome = shake.feed(bytes)
    return { outcome, sent: Buffer.concat(sent) }
  }
  const say = (option: number, data?: Buffer): { outcome: HandshakeOutcome; replies: Reply[] } => {
    const { outcome, sent: bytes } = raw(optionRequest(option, data))
    return { outcome, replies: parse(bytes) }
  }
  const answer = (option: number, data?: Buffer): string => {
    const last = say(option, data).replies.at(-1)
    const type = Object.entries(NBD_REP).find(([, value]) => value === last?.type)?.[0] ?? 'none'
    return last !== undefined && last.data.length > 0 ? `${type}: ${last.data}` : type
  }
  return { hello, first, raw, say, answer, disk }
}

function parse(bytes: Buffer): Reply[] {
  const replies: Reply[] = []
  for (let at = 0; at < bytes.length; ) {
    expect(bytes.readBigUInt64BE(at)).toBe(0x0003e889045565a9n)
    const length = bytes.readUInt32BE(at + 16)
    const data = bytes.subarray(at + 20, at + 20 + length)
    replies.push({ option: bytes.readUInt32BE(at + 8), type: bytes.readUInt32BE(at + 12), data })
    at += 20 + length
  }
  return replies
}

const { EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY } = NBD_OPT
const { LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS } = NBD_OPT

test('nbd / handshake / the greeting offers fixed newstyle without zeroes', () => {
  const { hello } = setup()
  expect(hello.toString('latin1', 0, 16)).toBe('NBDMAGICIHAVEOPT')
  expect(hello.readUInt16BE(16)).toBe(3)
})

test('nbd / handshake / unknown client flags, bad magics and huge options drop the client', () => {
  expect(setup({ clientFlags: 4 }).first.kind).toBe('drop')
  expect(setup().raw(Buffer.alloc(16, 'x')).outcome.kind).toBe('drop')
  const huge = optionRequest(LIST)
  huge.writeUInt32BE((32 << 20) + 1, 12)
  expect(setup().raw(huge).outcome.kind).toBe('drop')
})

test('nbd / handshake / a client without fixed newstyle may only enter by name', () => {
  expect(setup({ clientFlags: 0 }).say(LIST).outcome.kind).toBe('drop')
  const { outcome, sent } = setup({ clientFlags: 0 }).raw(
    optionRequest(EXPORT_NAME, Buffer.from('a')),
  )
  expect(outcome.kind).toBe('enter')
  expect(sent.length).toBe(134)
  const short = setup().raw(optionRequest(EXPORT_NAME, Buffer.from('a')))
  expect(short.sent.length).toBe(10)
  expect(short.sent.readUInt16BE(8)).toBe(0xd6d)
  expect(setup().raw(optionRequest(EXPORT_NAME, Buffer.from('nope'))).outcome.kind).toBe('drop')
})

test('nbd / handshake / wrong options are refused with these words', () => {
  const { answer } = setup()
  expect(answer(LIST, Buffer.from('x'))).toBe("ERR_INVALID: option 'list' has unexpected length")
  expect(answer(STARTTLS, Buffer.from('x'))).toBe(
    "ERR_INVALID: option 'starttls' has unexpected length",
  )
  expect(answer(STARTTLS)).toBe('ERR_POLICY: TLS not configured')
  expect(answer(99, Buffer.from('abc'))).toBe('ERR_UNSUP: Unsupported option 99 (<unknown>)')
  expect(answer(EXTENDED_HEADERS)).toMatch(/^ERR_UNSUP/)
  expect(answer(STRUCTURED_REPLY)).toBe('ACK')
  expect(answer(STRUCTURED_REPLY)).toBe('ERR_INVALID: structured reply already negotiated')
  expect(answer(INFO, infoData('nope', []))).toBe("ERR_UNKNOWN: export 'nope' not present")
  expect(answer(INFO, infoData('n'.repeat(4096), []))).toMatch(/^ERR_UNKNOWN/)
  expect(answer(INFO, infoData('n'.repeat(4097), []))).toBe(
    'ERR_INVALID: Invalid name length: 4097',
  )
  const trailing = Buffer.concat([infoData('a', []), Buffer.from('x')])
  const inconsistent = 'ERR_INVALID: Inconsistent lengths in option info'
  const tooLong = "ERR_INVALID: option 'info' has unexpected length"
  expect(answer(INFO, trailing)).toBe(tooLong)
  const long = `${'n'.repeat(80)}...`
  expect(answer(INFO, infoData('n'.repeat(100), []))).toContain(`export '${long}' not present`)
  expect(answer(EXTENDED_HEADERS)).toBe('ERR_UNSUP: Unsupported option 11 (<unknown>)')
  expect(answer(INFO, lengthPrefixed('a'))).toBe(inconsistent)
  expect(answer(INFO, Buffer.from('abc'))).toBe(inconsistent)
  expect(answer(INFO, Buffer.from([0, 0, 0, 9, 65]))).toBe(inconsistent)
  expect(answer(GO, infoData('a', [7, 7, 3, 3, 0]))).toBe('ACK')
})

test('nbd / handshake / abort is acknowledged and drops', () => {
  const { outcome, replies } = setup().say(ABORT)
  expect(outcome.kind).toBe('drop')
  expect(replies.map((reply) => reply.type)).toEqual([NBD_REP.ACK])
})

test('nbd / handshake / options arrive in pieces as well as together', () => {
  const { raw } = setup()
  const bytes = Buffer.concat([optionRequest(LIST), optionRequest(INFO, infoData('a', []))])
  const seen: Buffer[] = []
  for (const byte of bytes) seen.push(raw(Buffer.from([byte])).sent)
  const whole = setup().raw(bytes).sent
  expect(Buffer.concat(seen).equals(whole)).toBe(true)
})

test('nbd / handshake / long data is swallowed and refused', () => {
  const { raw, say } = setup()
  const long = Buffer.alloc(2 << 20)
  expect(parse(raw(optionRequest(LIST_META_CONTEXT, long)).sent).at(-1)?.type).toBe(
    NBD_REP.ERR_TOO_BIG,
  )
  expect(parse(raw(optionRequest(77, long)).sent).at(-1)?.type).toBe(NBD_REP.ERR_UNSUP)
  expect(say(LIST).replies.length).toBe(4)
})

test('nbd / handshake / info tells sizes, flags and, when wanted, names', () => {
  const { say, answer } = setup()
  const infos = (replies: Reply[]) =>
    replies.filter((r) => r.type === NBD_REP.INFO).map((r) => r.data.readUInt16BE(0))
  expect(infos(say(INFO, infoData('a', [])).replies)).toEqual([3, 0])
  expect(infos(say(INFO, infoData('', [1, 2])).replies)).toEqual([1, 2, 3, 0])
  expect(answer(STRUCTURED_REPLY)).toBe('ACK')
  const about = (name: string) =>
    say(INFO, infoData(name, [])).replies.find((r) => r.data.readUInt16BE(0) === 0)?.data
  expect(about('a')?.readUInt16BE(10)).toBe(0xded)
  expect(about('')?.readUInt16BE(10)).toBe(0x58f)
  expect(about('a')?.readBigUInt64BE(2)).toBe(1n << 20n)
})

test('nbd / handshake / metadata contexts are listed, selected and bound to their export', () => {
  const { say, answer } = setup()
  const names = (option: number, name: string, queries: string[]) =>
    say(option, metaData(name, queries))
      .replies.filter((r) => r.type === NBD_REP.META_CONTEXT)
      .map((r) => `${r.data.readUInt32BE(0)} ${r.data.toString('utf8', 4)}`)
  expect(answer(SET_META_CONTEXT, metaData('a', []))).toMatch(/^ERR_INVALID/)
  expect(names(LIST_META_CONTEXT, 'deep', []).map((text) => text.slice(2))).toEqual([
    'base:allocation',
    'qemu:allocation-depth',
    'qemu:dirty-bitmap:b',
  ])
  expect(names(LIST_META_CONTEXT, 'deep', ['q'.repeat(5000)])).toEqual([])
  expect(names(LIST_META_CONTEXT, 'deep', ['qemu:'])).toHaveLength(2)
  expect(names(LIST_META_CONTEXT, 'deep', ['qemu:dirty-bitmap:'])).toHaveLength(1)
  expect(answer(STRUCTURED_REPLY)).toBe('ACK')
  expect(names(SET_META_CONTEXT, 'deep', ['base:', 'other:x'])).toEqual([])
  expect(answer(SET_META_CONTEXT, metaData('nope', []))).toMatch(/^ERR_UNKNOWN/)
  expect(names(SET_META_CONTEXT, 'deep', ['qemu:dirty-bitmap:b', 'base:allocation'])).toEqual([
    '0 base:allocation',
    '2 qemu:dirty-bitmap:b',
  ])
  const other = say(GO, infoData('a', []))
  expect(other.outcome.kind === 'enter' && other.outcome.session.contexts).toEqual([])
})

test('nbd / handshake / bytes after GO are handed on', () => {
  const { raw } = setup()
  const bytes = Buffer.concat([optionRequest(GO, infoData('a', [])), Buffer.from('rest')])
  const { outcome } = raw(bytes)
  expect(outcome.kind === 'enter' && outcome.rest.toString()).toBe('rest')
})

test('nbd / handshake / a disk that lost its medium drops the client', () => {
  const { say, disk } = setup()
  disk.length = () => {
    throw new BlockError('ENOMEDIUM', 'No medium found')
  }
  expect(say(GO, infoData('a', [])).outcome.kind).toBe('drop')
})

test('nbd / handshake / a closing server refuses everything but abort', () => {
  const { answer, say } = setup({ closing: true })
  expect(answer(LIST)).toMatch(/^ERR_SHUTDOWN/)
  expect(say(ABORT).replies.at(-1)?.type).toBe(NBD_REP.ACK)
})

test('nbd / handshake / before TLS nothing else is said, and what came before it does not count', () => {
  const { say, answer, raw } = setup({ needsTls: true })
  const needed = 'ERR_TLS_REQD: Option 0x'
  for (const option of [ABORT, LIST, INFO, GO, STRUCTURED_REPLY, 99]) {
    expect(answer(option)).toBe(`${needed}${option.toString(16)} not permitted before TLS`)
  }
  expect(answer(LIST, Buffer.alloc(2 << 20))).toBe(`${needed}3 not permitted before TLS`)
  expect(answer(STARTTLS, Buffer.from('x'))).toMatch(/^ERR_INVALID/)
  const begun = raw(Buffer.concat([optionRequest(STARTTLS), Buffer.from('hello')]))
  expect(begun.outcome).toEqual({ kind: 'tls', rest: Buffer.from('hello') })
  expect(parse(begun.sent).map(({ type }) => type)).toEqual([NBD_REP.ACK])
  expect(answer(STARTTLS)).toBe('ERR_INVALID: TLS already enabled')
  expect(answer(STRUCTURED_REPLY)).toBe('ACK')
  expect(say(GO, infoData('a', [])).outcome.kind).toBe('enter')
  const named = setup({ needsTls: true })
  expect(named.say(EXPORT_NAME, Buffer.from('a')).outcome.kind).toBe('drop')
})
