import { describe, expect, it } from 'vitest'
import { infoData, optionRequest } from '../../../src/nbd/codec.ts'
import { NBD_INFO, NBD_OPT, NBD_REP } from '../../../src/nbd/constants.ts'
import { Handshake } from '../../../src/nbd/handshake.ts'
import { FakeDisk } from './fake-disk.ts'

/** Types of the replies to one option, and the smallest block that was told. */
function ask(alignment: number, option: number, infos: number[]) {
  const disk = new FakeDisk(1 << 20)
  disk.requestAlignment = alignment
  const exp = { name: 'a', backend: disk, readOnly: false }
  const host = {
    closing: false,
    needsTls: false,
    multiConn: true,
    find: () => exp,
    exports: () => [exp],
  }
  const sent: Buffer[] = []
  const shake = new Handshake(host, (bytes) => void sent.push(bytes))
  shake.feed(Buffer.from([0, 0, 0, 3]))
  sent.length = 0
  shake.feed(optionRequest(option, infoData('a', infos)))
  const all = Buffer.concat(sent)
  const types: number[] = []
  let smallest = 0
  for (let at = 0; at < all.length; at += 20 + all.readUInt32BE(at + 16)) {
    types.push(all.readUInt32BE(at + 12))
    const isInfo = all.readUInt32BE(at + 12) === NBD_REP.INFO
    if (isInfo && all.readUInt16BE(at + 20) === NBD_INFO.BLOCK_SIZE)
      smallest = all.readUInt32BE(at + 22)
  }
  return { last: types.at(-1), smallest }
}

describe('nbd / block size', () => {
  it('nbd / block size / the smallest is the alignment of the disk', () => {
    const told = { last: NBD_REP.ACK, smallest: 4096 }
    expect(ask(4096, NBD_OPT.INFO, [NBD_INFO.BLOCK_SIZE])).toEqual(told)
    expect(ask(1, NBD_OPT.INFO, [])).toEqual({ last: NBD_REP.ACK, smallest: 1 })
  })

  it('nbd / block size / a client that only asks must ask for it, one that enters need not', () => {
    expect(ask(4096, NBD_OPT.INFO, []).last).toBe(NBD_REP.ERR_BLOCK_SIZE_REQD)
    expect(ask(4096, NBD_OPT.GO, []).last).toBe(NBD_REP.ACK)
  })
})
