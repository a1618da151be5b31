/** A part of a message, as the browser keeps it. */
export interface Part {
  type: "text" | "image" | "video" | "file";
  text?: string;
  url?: string;
  name?: string;
  /** Seed of an image or a clip that was drawn. */
  seed?: number;
  /** True while it is being drawn. */
  partial?: boolean;
  /** Frames of a video that are asked for; null: as many as the server takes by itself. */
  numFrames?: number | null;
  preview?: Preview;
  /** Names a file while the message is written. */
  key?: string;
}

/** Frames as the model sees them, and their tokens. */
export interface Preview {
  tokens: number;
  kind?: string;
  num_frames?: number;
  shown?: number[];
  frames?: { url: string }[];
}

/** What an image or a clip is drawn with. */
export interface Drawing {
  kind: "image" | "clip";
  seed: number;
  n: number;
  guidance?: number | null;
  temperature?: number | null;
  top_k?: number | null;
  top_p?: number | null;
  frames?: number | null;
}

/** A turn; those with the same parent are branches. */
export interface Turn {
  id: string;
  parent: string | null;
  role: "user" | "assistant";
  parts: Part[];
  created: number;
  state?: "running" | "done" | "stopped" | "error";
  /** The id of a stream that can be attached to again. */
  stream?: string;
  error?: string;
  drawing?: Drawing;
  usage?: any;
  timings?: any;
  finish?: string;
  /** A line on what goes on. */
  progress?: string;
  /** When its first text came, in milliseconds. */
  first?: number;
  /** Text that stood there before the answer was continued. */
  before?: string;
}

export interface Conversation {
  id: string;
  title: string;
  updated: number;
  turns: Record<string, Turn>;
  /** The last turn of the branch that is shown. */
  leaf: string | null;
  /** True once it has been deleted. */
  gone?: boolean;
}

/** A value that is not set is the server's. */
export interface Settings {
  system: string;
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  min_p?: number | null;
  repetition_penalty?: number | null;
  max_tokens?: number | null;
  seed?: number | null;
  num_frames?: number | null;
  theme: "system" | "light" | "dark";
  draw: Omit<Drawing, "kind" | "seed"> & { seed?: number | null };
}

/** Facts of the server. */
export interface Server {
  name: string;
  context: number;
  sees: boolean;
  draws: boolean;
  maxN: number;
  defaults: any;
  imageSettings: any;
}
