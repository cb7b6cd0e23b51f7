// The page's words, in English and Chinese; `t("key", {n: 3})` is the one of the language chosen. A function's result
// may depend on its values.

import { preferences } from "./preferences.js";

const several = (n, one, many) => `${n} ${Number(n) === 1 ? one : many}`;

const WORDS = {
  newChat: ["New chat", "新对话"],
  chats: ["Chats", "对话"],
  menu: ["Chats", "对话列表"],
  searchChats: ["Search chats", "搜索对话"],
  noChats: ["Chats appear here. They stay in this browser.", "对话会出现在这里，只保存在本浏览器中。"],
  nothingFound: ["Nothing found.", "没有找到。"],
  rename: ["Rename", "重命名"],
  remove: ["Delete", "删除"],
  removeAsk: [({ title }) => `Delete “${title}”? This cannot be undone.`, ({ title }) => `删除“${title}”？此操作无法撤销。`],
  exportAll: ["Export all", "全部导出"],
  exportOne: ["Export", "导出"],
  import: ["Import", "导入"],
  imported: [({ n }) => `Imported ${several(n, "chat", "chats")}.`, ({ n }) => `已导入 ${n} 个对话。`],
  badImport: [({ name }) => `${name} holds no exported chats.`, ({ name }) => `${name} 不是导出的对话文件。`],
  today: ["Today", "今天"],
  yesterday: ["Yesterday", "昨天"],
  week: ["Last seven days", "最近七天"],
  earlier: ["Earlier", "更早"],
  notKept: ["This browser stores nothing for this page: chats are lost when it is closed.",
    "本浏览器不允许此页面存储数据：关闭页面后对话会丢失。"],
  storeFailed: [({ error }) => `This chat could not be stored: ${error}`, ({ error }) => `无法保存对话：${error}`],

  model: ["Model", "模型"],
  noModels: ["No model", "没有模型"],
  notLoaded: [({ name }) => `${name} (loads when asked)`, ({ name }) => `${name}（提问时加载）`],
  settings: ["Settings", "设置"],
  language: ["中文", "English"],
  theme: [({ name }) => `Theme: ${name}`, ({ name }) => `主题：${name}`],
  themeAuto: ["as the system", "跟随系统"],
  themeLight: ["light", "浅色"],
  themeDark: ["dark", "深色"],

  welcome: ["What would you like to know?", "有什么想聊的？"],
  welcomeHint: ["It runs on this server; chats stay in this browser.", "模型运行在这台服务器上，对话只保存在本浏览器中。"],
  write: ["Write a message", "输入消息"],
  send: ["Send", "发送"],
  stop: ["Stop", "停止"],
  attach: ["Attach text files", "添加文本文件"],
  drop: ["Drop text files here", "将文本文件拖放到这里"],
  removeFile: [({ name }) => `Remove ${name}`, ({ name }) => `移除 ${name}`],
  notText: [({ name }) => `${name} is no text file; only text can be attached.`, ({ name }) => `${name} 不是文本文件，只能添加文本。`],
  tooLarge: [({ name, limit }) => `${name} is larger than ${limit}; attach a part of it.`,
    ({ name, limit }) => `${name} 超过 ${limit}，请只添加其中一部分。`],
  fileSize: [({ n }) => `${n} characters`, ({ n }) => `${n} 个字符`],
  toBottom: ["To the end", "到底部"],

  you: ["You", "你"],
  assistant: ["Model", "模型"],
  toolResult: ["Tool result", "工具结果"],
  copy: ["Copy", "复制"],
  copyCode: ["Copy code", "复制代码"],
  copied: ["Copied", "已复制"],
  code: ["Code", "代码"],
  table: ["Table", "表格"],
  done: ["done", "已完成"],
  notDone: ["not done", "未完成"],
  regenerate: ["Answer again", "重新回答"],
  edit: ["Edit", "编辑"],
  save: ["Save", "保存"],
  saveAndSend: ["Send", "发送"],
  cancel: ["Cancel", "取消"],
  previous: ["Previous version", "上一个版本"],
  next: ["Next version", "下一个版本"],
  versions: [({ at, of }) => `Version ${at} of ${of}`, ({ at, of }) => `第 ${at} 个版本，共 ${of} 个`],
  thinking: ["Thinking …", "思考中……"],
  thought: ["Thought", "思考过程"],
  thoughtFor: [({ s }) => `Thought for ${s} s`, ({ s }) => `思考了 ${s} 秒`],
  waiting: ["Waiting for the model …", "等待模型……"],
  toolCall: [({ name }) => `Calls ${name}`, ({ name }) => `调用 ${name}`],
  toolAnswer: ["Result of the call", "调用结果"],
  toolSend: ["Send results", "发送结果"],
  retry: ["Try again", "重试"],
  answerDone: ["The answer is complete.", "回答完毕。"],
  answerStopped: ["Stopped.", "已停止。"],

  stopped: ["Stopped", "已停止"],
  interrupted: ["Interrupted", "已中断"],
  cutByLength: ["Ended at the most tokens allowed", "已达到最多词元数"],
  cutByContext: ["The context is full", "上下文已满"],
  speed: [({ n }) => `${n} tokens/s`, ({ n }) => `${n} 词元/秒`],
  tokens: [({ n }) => several(n, "token", "tokens"), ({ n }) => `${n} 个词元`],
  contextShare: [({ share }) => `${share} of context`, ({ share }) => `上下文 ${share}`],
  contextTokens: [({ n }) => `context ${several(n, "token", "tokens")}`, ({ n }) => `上下文 ${n} 个词元`],
  details: [({ prompt, cached, generated, context }) =>
    `Prompt ${prompt} tokens${cached === null ? "" : ` (${cached} from the cache)`}, answer ${generated}${context ? `, context ${context}` : ""}`,
  ({ prompt, cached, generated, context }) =>
    `提示 ${prompt} 个词元${cached === null ? "" : `（缓存 ${cached} 个）`}，回答 ${generated} 个${context ? `，上下文 ${context} 个` : ""}`],

  noServer: ["The server cannot be reached.", "无法连接服务器。"],
  connectionLost: ["The connection to the server was lost before the answer ended.", "回答结束之前，与服务器的连接中断了。"],
  keyTitle: ["API key", "API 密钥"],
  keyAsk: ["The server asks for an API key. It is kept in this browser and sent to this server alone.",
    "服务器要求提供 API 密钥。密钥保存在本浏览器中，只发送给这台服务器。"],
  keyForget: ["Forget the key", "清除密钥"],
  ok: ["OK", "确定"],

  thisChat: ["This chat", "当前对话"],
  system: ["System prompt", "系统提示"],
  systemHint: ["What the model is to know or to be", "模型的身份、背景或要求"],
  sampling: ["Sampling", "采样"],
  samplingHint: ["Empty fields follow the model's defaults, shown in grey.", "留空则使用模型的默认值（灰色显示）。"],
  modelDefault: ["default", "默认"],
  temperature: ["Temperature", "温度"],
  top_p: ["Top-p", "Top-p"],
  top_k: ["Top-k", "Top-k"],
  min_p: ["Min-p", "Min-p"],
  repetition_penalty: ["Repetition penalty", "重复惩罚"],
  presence_penalty: ["Presence penalty", "存在惩罚"],
  frequency_penalty: ["Frequency penalty", "频率惩罚"],
  max_tokens: ["Most tokens", "最多词元数"],
  seed: ["Seed", "随机种子"],
  stopTexts: ["Stop at (one a line)", "遇到以下文本停止（每行一个）"],
  thinkingMode: ["Thinking", "思考"],
  thinkingDefault: ["as the model does", "模型默认"],
  thinkingOff: ["off", "关闭"],
  thinkingOn: ["on", "开启"],
  thinkingLow: ["little", "少"],
  thinkingMedium: ["medium", "中"],
  thinkingHigh: ["much", "多"],
  tools: ["Tools (JSON, as in OpenAI's API)", "工具（JSON，格式同 OpenAI API）"],
  badTools: [({ error }) => `Tools are no JSON list: ${error}`, ({ error }) => `工具不是 JSON 列表：${error}`],
  asDefault: ["Use for new chats", "用于新对话"],
  asDefaultDone: ["New chats begin with these settings.", "新对话将使用这些设置。"],
  reset: ["Back to defaults", "恢复默认"],
  close: ["Close", "关闭"],
  outOfRange: [({ name, low, high }) => `${name} must be between ${low} and ${high}.`, ({ name, low, high }) => `${name} 必须在 ${low} 和 ${high} 之间。`],

  shortcuts: ["Keyboard", "键盘快捷键"],
  keySend: ["Send", "发送"],
  keyLine: ["New line", "换行"],
  keyStop: ["Stop the answer", "停止回答"],
  keyEditLast: ["Edit the last message (empty field)", "编辑上一条消息（输入框为空时）"],
  keyNew: ["New chat", "新对话"],
  keySearch: ["Search chats", "搜索对话"],
  keyFocus: ["Write a message", "输入消息"],
  keyHelp: ["This list", "显示此列表"],
  print: ["Print", "打印"],
};

export function t(key, values) {
  const words = WORDS[key][preferences.get("language") === "zh" ? 1 : 0];
  return typeof words === "function" ? words(values) : words;
}

export function locale() {
  return preferences.get("language") === "zh" ? "zh-CN" : "en";
}

export function number(value, digits = 0) {
  return value.toLocaleString(locale(), { maximumFractionDigits: digits, minimumFractionDigits: digits });
}
