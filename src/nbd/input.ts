/**
 * What arrives through a socket, in one buffer that is used again for every read.
 *
 * Invariants:
 * - Bytes handed to `arrived` are good during that call only.
 * - A read goes to the buffer that `room` gave after the read before it, if it gave one; so who gives
 *   room keeps it until it is filled or the socket is gone.
 * - A socket is taken over only while nothing of it is buffered in either direction; one that
 *   cannot be taken over goes on as it is, with a fresh buffer for each read.
 *
 * A fresh buffer for each read is what the host does by itself: 64 KiB from the allocator, whose
 * weight makes the collector run several times a second on a busy connection. The host offers the
 * other way for sockets that it connects, and not for those that it accepts; so the connection is
 * moved to a socket made with that option, which is how it hands connections between processes.
 */
import { type OnReadOpts, Socket, type SocketConstructorOpts } from 'node:net'
import { TLSSocket } from 'node:tls'

/** Room for several requests, so that a burst costs one read. */
const INPUT_BYTES = 256 << 10
/** Less than this is not worth a read of its own. */
const ROOM_MIN = 64 << 10

/** Who wants what arrives. */
export interface InputTaker {
  /** Bytes of the common buffer. */
  arrived(bytes: Buffer): void
  /** Where the next read should go instead: the rest of a long payload. */
  room(): Buffer | undefined
  /** The first `bytes` of the room are filled. */
  filled(bytes: number): void
}

/** The host's socket options, with those that its types leave out. */
interface TakeOverOptions extends SocketConstructorOpts {
  readonly handle: object
  readonly pauseOnCreate: boolean
  readonly onread: OnReadOpts
}

/**
 * From now on `taker` gets the bytes; answers the socket to use instead of `socket`, whose
 * listeners are gone when it is another one. It is paused either way.
 */
export function takeInput(socket: Socket, taker: InputTaker): Socket {
  const handle: unknown = Reflect.get(socket, '_handle')
  const busy = socket.destroyed || socket.writableLength > 0 || socket.readableLength > 0
  const ended = socket.writableEnded || socket.readableEnded
  // The handle of a TLS socket is that of what is below it, which must go on decrypting.
  if (busy || ended || socket instanceof TLSSocket || !isHandle(handle)) {
    socket.pause()
    socket.removeAllListeners('data')
    socket.on('data', (bytes: Buffer) => taker.arrived(bytes))
    return socket
  }
  const buffer = Buffer.allocUnsafeSlow(INPUT_BYTES)
  const options: TakeOverOptions = {
    handle,
    pauseOnCreate: true,
    allowHalfOpen: socket.allowHalfOpen,
    onread: {
      buffer: () => taker.room() ?? buffer,
      callback: (bytes, into) => {
        if (into === buffer) taker.arrived(buffer.subarray(0, bytes))
        else taker.filled(bytes)
        // False would pause the socket.
        return true
      },
    },
  }
  const taken = new Socket(options)
  socket.removeAllListeners()
  socket.on('error', () => undefined)
  Reflect.set(socket, '_handle', null)
  socket.destroy()
  return taken
}

function isHandle(value: unknown): value is object {
  return typeof value === 'object' && value !== null && 'useUserBuffer' in value
}

/** What is worth giving as room of a buffer that is filled up to `fill`; the host fills own memory only. */
export function roomIn(into: Uint8Array | undefined, fill: number): Buffer | undefined {
  if (into === undefined || into.length - fill < ROOM_MIN) return undefined
  const { buffer } = into
  if (!(buffer instanceof ArrayBuffer)) return undefined
  return Buffer.from(buffer, into.byteOffset + fill, into.length - fill)
}
