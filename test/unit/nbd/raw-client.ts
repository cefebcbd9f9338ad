/**
 * A client at the level of bytes, for what ordinary clients never send.
 *
 * Invariants:
 * - `read` gives exactly what was asked for or fails with `closed`.
 */
import { connect, type Socket } from 'node:net'
import type { NbdAddress } from '../../../src/nbd/address.ts'
import { infoData, metaData, optionRequest } from '../../../src/nbd/codec.ts'
import { NBD_INFO, NBD_OPT, NBD_REP } from '../../../src/nbd/constants.ts'

export interface RawReply {
  error: number
  message: string
  simple: boolean
  data: Buffer | undefined
  chunks: { kind: string; offset: number; bytes: number; done: boolean }[]
  extents: Record<number, number[]>
}

export class RawClient {
  readonly socket: Socket
  #have: Buffer = Buffer.alloc(0)
  #closed = false
  #wake: (() => void) | undefined
  cookie = 0xfffffffe00000000n
  size = 0
  flags = 0

  constructor(socket: Socket) {
    this.socket = socket
    socket.on('data', (bytes) => {
      this.#have = Buffer.concat([this.#have, bytes])
      this.#wake?.()
    })
    socket.on('error', () => undefined)
    socket.on('close', () => {
      this.#closed = true
      this.#wake?.()
    })
  }

  static async connect(
    address: NbdAddress,
    clientFlags: number | undefined = 3,
  ): Promise<RawClient> {
    const socket =
      address.type === 'unix' ? connect(address.path) : connect(Number(address.port), address.host)
    const client = new RawClient(socket)
    await client.read(18)
    if (clientFlags !== undefined) {
      const flags = Buffer.alloc(4)
      flags.writeUInt32BE(clientFlags)
      socket.write(flags)
    }
    return client
  }

  /** Negotiates and enters `name`. */
  static async enter(
    address: NbdAddress,
    name: string,
    { structured = true, contexts = [] as string[] } = {},
  ): Promise<RawClient> {
    const client = await RawClient.connect(address)
    if (structured) await client.option(NBD_OPT.STRUCTURED_REPLY)
    if (contexts.length > 0) await client.option(NBD_OPT.SET_META_CONTEXT, metaData(name, contexts))
    const replies = await client.option(NBD_OPT.GO, infoData(name, []))
    for (const { type, data } of replies) {
      if (type === NBD_REP.INFO && data.readUInt16BE(0) === NBD_INFO.EXPORT) {
        client.size = Number(data.readBigUInt64BE(2))
        client.flags = data.readUInt16BE(10)
      }
    }
    return client
  }

  async read(bytes: number): Promise<Buffer> {
    while (this.#have.length < bytes) {
      if (this.#closed) throw new Error('closed')
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    const taken = this.#have.subarray(0, bytes)
    this.#have = this.#have.subarray(bytes)
    return taken
  }

  async closed(): Promise<boolean> {
    while (!this.#closed) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    return true
  }

  async option(option: number, data?: Buffer): Promise<{ type: number; data: Buffer }[]> {
    this.socket.write(optionRequest(option, data))
    const replies: { type: number; data: Buffer }[] = []
    for (;;) {
      const header = await this.read(20)
      const type = header.readUInt32BE(12)
      replies.push({ type, data: Buffer.from(await this.read(header.readUInt32BE(16))) })
      if (type === NBD_REP.ACK || type >= 0x80000000) return replies
    }
  }

  send(type: number, offset: bigint | number, length: number, flags = 0, payload?: Buffer): void {
    const header = Buffer.alloc(28)
    header.writeUInt32BE(0x25609513, 0)
    header.writeUInt16BE(flags, 4)
    header.writeUInt16BE(type, 6)
    header.writeBigUInt64BE(++this.cookie, 8)
    header.writeBigUInt64BE(BigInt(offset), 16)
    header.writeUInt32BE(length, 24)
    this.socket.write(payload === undefined ? header : Buffer.concat([header, payload]))
  }

  async command(
    type: number,
    offset: bigint | number = 0,
    length = 0,
    flags = 0,
    payload?: Buffer,
  ): Promise<RawReply> {
    this.send(type, offset, length, flags, payload)
    return this.reply(type, Number(offset), length)
  }

  async reply(type: number, offset: number, length: number): Promise<RawReply> {
    const reply: RawReply = {
      error: 0,
      message: '',
      simple: false,
      data: undefined,
      chunks: [],
      extents: {},
    }
    for (;;) {
      const magic = (await this.read(4)).readUInt32BE(0)
      if (magic === 0x67446698) {
        const head = await this.read(12)
        if (head.readBigUInt64BE(4) !== this.cookie) throw new Error('wrong cookie')
        reply.error = head.readUInt32BE(0)
        reply.simple = true
        if (type === 0 && reply.error === 0) reply.data = Buffer.from(await this.read(length))
        return reply
      }
      if (magic !== 0x668e33ef) throw new Error(`bad magic ${magic.toString(16)}`)
      const head = await this.read(16)
      if (head.readBigUInt64BE(4) !== this.cookie) throw new Error('wrong cookie')
      const done = (head.readUInt16BE(0) & 1) !== 0
      const body = Buffer.from(await this.read(head.readUInt32BE(12)))
      takeChunk(reply, head.readUInt16BE(2), body, offset, length, done)
      if (done) return reply
    }
  }

  close(): void {
    this.socket.destroy()
  }
}

function takeChunk(
  reply: RawReply,
  type: number,
  body: Buffer,
  offset: number,
  length: number,
  done: boolean,
): void {
  if ((type & 0x8000) !== 0) {
    reply.error = body.readUInt32BE(0)
    reply.message = body.toString('utf8', 6, 6 + body.readUInt16BE(4))
  } else if (type === 1 || type === 2) {
    const at = Number(body.readBigUInt64BE(0))
    const bytes = type === 1 ? body.length - 8 : body.readUInt32BE(8)
    reply.data ??= Buffer.alloc(length)
    if (type === 1) body.copy(reply.data, at - offset, 8)
    reply.chunks.push({ kind: type === 1 ? 'data' : 'hole', offset: at, bytes, done })
  } else if (type === 5) {
    const words: number[] = []
    for (let i = 4; i < body.length; i += 4) words.push(body.readUInt32BE(i))
    reply.extents[body.readUInt32BE(0)] = words
  } else reply.chunks.push({ kind: 'none', offset: 0, bytes: 0, done })
}
